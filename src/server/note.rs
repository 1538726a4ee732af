//! The note of a configuration that waits for its confirmation, or was taken back: what the next start needs to know of it,
//! as the process that knows it may be killed. JSON, written whole as the journal is, and for the owner alone: a
//! configuration's text may hold secrets.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use nix::unistd::{User, geteuid, getuid};
use serde::{Deserialize, Serialize};

use super::{
    confirm::Answers,
    process::{runtime_folder, upgrade_sock_below},
};
use crate::{policy::balance::hash_bytes, service::admin::operator::AbortIf};

/// Of the format.
const VERSION: u32 = 1;
/// What is longer is no note: the longest configuration, written in JSON, and as much of what was said at run time.
const LONGEST: u64 = 256 << 20;

/// What is noted.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(super) struct Note {
    version: u32,
    /// Who has had the file loaded.
    pub(super) who: String,
    /// Milliseconds since 1970.
    at: u64,
    within_millis: u64,
    /// Of the text of the file that is to be confirmed.
    tried: u64,
    abort_if: Option<NotedAbort>,
    /// Why it was; `None`: it waits.
    pub(super) taken_back: Option<String>,
    /// The last configuration that nobody has to confirm.
    confirmed: Source,
    /// Of `confirmed`.
    check: u64,
    /// What the reload has made of overrides, each as a journal's text.
    pub(super) merged: Option<NotedMerged>,
    /// Everywhere where the note is. As read it is a claim: see [`find`].
    pub(super) places: Vec<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
struct NotedAbort {
    /// In hundredths of a percent.
    share: u32,
    /// Of the minute before.
    answers: u64,
    errors: u64,
}

/// Overrides as they were before a reload, and as it left them.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(super) struct NotedMerged {
    pub(super) before: String,
    pub(super) after: String,
}

/// A configuration as it was read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub(super) struct Source {
    /// Where it came from, and where relative paths in it begin.
    pub(super) file: PathBuf,
    pub(super) text: String,
}

impl Source {
    /// Of a file, which a start in another folder finds as well.
    pub(super) fn new(file: &Path, text: String) -> Self {
        Self { file: std::path::absolute(file).unwrap_or_else(|_| file.to_owned()), text }
    }
}

/// A reload that is to be noted.
pub(super) struct Tried<'a> {
    pub(super) text: &'a str,
    pub(super) who: &'a str,
    pub(super) within: Duration,
    pub(super) abort: Option<(AbortIf, Answers)>,
    pub(super) confirmed: Source,
}

/// What was found where a note may be.
#[derive(Debug)]
pub(super) enum Found {
    /// What is no note of rrlb, or is torn; the text says why.
    Damaged(String),
    /// A note that another user can write, who is neither root nor this process' own. Nothing it says may be done.
    Foreign(Box<Note>, u32),
    Note(Box<Note>),
    Nothing,
    /// There may be one; the text says why it cannot be read.
    Unreadable(String),
}

impl Note {
    /// To be kept in these places.
    pub(super) fn new(tried: Tried<'_>, places: Vec<PathBuf>) -> Self {
        let Tried { text, who, within, abort, confirmed } = tried;
        let noted = |(AbortIf { share }, minute): (AbortIf, Answers)| NotedAbort {
            share,
            answers: minute.all,
            errors: minute.errors,
        };
        Self {
            version: VERSION,
            who: who.to_owned(),
            at: millis_now(),
            within_millis: millis(within),
            tried: hash_bytes(text.as_bytes()),
            abort_if: abort.map(noted),
            taken_back: None,
            check: hash_bytes(confirmed.text.as_bytes()),
            confirmed,
            merged: None,
            places,
        }
    }

    /// Whether it is about a file with this text.
    pub(super) fn is_about(&self, text: &str) -> bool {
        self.tried == hash_bytes(text.as_bytes())
    }

    /// Whether both are of one reload.
    fn is_same(&self, other: &Self) -> bool {
        (&self.who, self.at, self.tried, self.check) == (&other.who, other.at, other.tried, other.check)
    }

    /// Whether both say the same, wherever they are.
    pub(super) fn says_as(&self, other: &Self) -> bool {
        let said = |note: &Self| Self { places: Vec::new(), ..note.clone() };
        said(self) == said(other)
    }

    pub(super) fn within(&self) -> Duration {
        Duration::from_millis(self.within_millis)
    }

    /// What is left of its time; `None` where that is over. A clock that was set back makes it no longer than it was.
    pub(super) fn left(&self) -> Option<Duration> {
        let left = self.at.saturating_add(self.within_millis).saturating_sub(millis_now()).min(self.within_millis);
        (left > 0 && self.taken_back.is_none()).then(|| Duration::from_millis(left))
    }

    /// When it goes back early, and the answers of the minute before the reload.
    pub(super) fn abort(&self) -> Option<(AbortIf, Answers)> {
        let abort = |NotedAbort { share, answers, errors }| (AbortIf { share }, Answers { all: answers, errors });
        self.abort_if.map(abort)
    }

    pub(super) fn confirmed(&self) -> &Source {
        &self.confirmed
    }

    /// Into every place.
    ///
    /// # Errors
    /// Of the first that cannot be written; the others are.
    pub(super) fn write(&self) -> io::Result<()> {
        let text = serde_json::to_vec(self)?;
        let all = self.places.iter().map(|place| {
            replace(place, &text).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", place.display())))
        });
        all.fold(Ok(()), io::Result::and)
    }

    /// Out of every place.
    pub(super) fn remove(&self) {
        self.places.iter().for_each(|place| remove(place));
    }
}

/// Out of one place, whatever is there.
pub(super) fn remove(place: &Path) {
    match fs::remove_file(place) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => log::warn!("removing {}: {error}", place.display()),
        _ => {}
    }
}

/// Where the note of a process is: beside the state file, which outlives the machine's restart, or beside the upgrade socket
/// that `file` has where it names none.
pub(super) fn place(
    state_file: Option<&Path>,
    upgrade_sock: Option<&Path>,
    user: Option<&str>,
    file: &Path,
) -> PathBuf {
    let default_sock = || {
        let user = user.and_then(|name| User::from_name(name).ok().flatten()).map_or_else(getuid, |user| user.uid);
        upgrade_sock_below(&runtime_folder().unwrap_or_else(std::env::temp_dir), user, file)
    };
    let beside = state_file.or(upgrade_sock).map_or_else(default_sock, Path::to_owned);
    // In the background the process works in another folder.
    let beside = std::path::absolute(&beside).unwrap_or(beside);
    with_suffix(&beside, ".unconfirmed")
}

/// Looks for a note. Of the places that it names, those count where the same note is: a file that is something else is
/// neither written nor removed because of what a note says.
pub(super) fn find(place: &Path) -> Found {
    let found = find_in(place);
    let Found::Note(mut note) = found else { return found };
    let mut places = std::mem::take(&mut note.places);
    places.retain(|other| other != place && matches!(find_in(other), Found::Note(other) if other.is_same(&note)));
    places.insert(0, place.to_owned());
    note.places = places;
    Found::Note(note)
}

fn find_in(place: &Path) -> Found {
    let (text, owner) = match read(place) {
        Ok(Ok(read)) => read,
        Ok(Err(why)) => return Found::Damaged(why),
        Err(error) => match (error.kind(), error.raw_os_error()) {
            (io::ErrorKind::NotFound, _) => return Found::Nothing,
            // A link, or a socket.
            (_, Some(libc::ELOOP | libc::ENXIO)) => return Found::Damaged(error.to_string()),
            _ => return Found::Unreadable(error.to_string()),
        },
    };
    match serde_json::from_slice::<Note>(&text) {
        Err(error) => Found::Damaged(error.to_string()),
        Ok(Note { version, .. }) if version != VERSION => {
            Found::Damaged(format!("its version is {version}, and must be {VERSION}"))
        }
        Ok(note) if note.check != hash_bytes(note.confirmed.text.as_bytes()) => {
            Found::Damaged("its text is not what was written".to_owned())
        }
        Ok(note) if owner != 0 && owner != geteuid().as_raw() => Found::Foreign(Box::new(note), owner),
        Ok(note) => Found::Note(Box::new(note)),
    }
}

/// What is there and its owner, or why it can be no note.
fn read(place: &Path) -> io::Result<Result<(Vec<u8>, u32), String>> {
    // Never a link, nor a pipe that would block: others may be able to write the folder.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(place)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > LONGEST {
        return Ok(Err("it is too large, or not a file".to_owned()));
    }
    let mut text = Vec::new();
    file.take(LONGEST).read_to_end(&mut text)?;
    Ok(Ok((text, metadata.uid())))
}

/// Writes a file whole: it is there as it was or as it is to be, whatever happens.
fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let temporary = with_suffix(path, ".tmp");
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    let written = file.write_all(text).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = written {
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    // Some file systems have no such thing for folders; the note is there in any case.
    if let Some(Err(error)) = path.parent().map(|folder| File::open(folder).and_then(|folder| folder.sync_all())) {
        log::debug!("syncing the folder of {}: {error}", path.display());
    }
    Ok(())
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn millis_now() -> u64 {
    millis(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn noted(places: Vec<PathBuf>, within: Duration) -> Note {
        let confirmed = Source { file: "/etc/rrlb.yaml".into(), text: "secret\n".into() };
        let minute = Answers { all: 100, errors: 1 };
        let abort = Some((AbortIf { share: 200 }, minute));
        Note::new(Tried { text: "tried", who: "uid 7", within, abort, confirmed }, places)
    }

    #[test]
    fn a_note_is_read_as_it_was_written_by_its_owner_alone_from_each_place() {
        let folder = tempfile::tempdir().expect("a folder");
        let places = vec![folder.path().join("one"), folder.path().join("two")];
        let note = noted(places.clone(), Duration::from_secs(60));
        note.write().expect("writes");
        for place in &places {
            assert_eq!(fs::metadata(place).expect("a file").permissions().mode() & 0o777, 0o600);
            let Found::Note(mut found) = find(place) else { panic!("{:?}", find(place)) };
            found.places.sort();
            assert_eq!(*found, note);
            assert!(found.is_about("tried") && !found.is_about("another"));
            assert!(found.left().is_some_and(|left| left <= Duration::from_secs(60)));
        }
        note.remove();
        assert!(places.iter().all(|place| matches!(find(place), Found::Nothing)));
    }

    #[test]
    fn what_is_torn_or_no_note_is_told_apart() {
        let folder = tempfile::tempdir().expect("a folder");
        let place = folder.path().join("note");
        noted(vec![place.clone()], Duration::from_secs(60)).write().expect("writes");
        let text = fs::read_to_string(&place).expect("reads");
        let damaged = |text: &str| {
            fs::write(&place, text).expect("writes");
            matches!(find(&place), Found::Damaged(_))
        };
        for length in [0, 1, text.len() / 2, text.len() - 1] {
            assert!(damaged(&text[..length]), "{length} bytes");
        }
        assert!(damaged(&text.replace("secret", "sacred")));
        assert!(damaged(&text.replace("\"version\":1", "\"version\":9")));
        assert!(damaged("{\"who\":\"uid 7\",\"at\":1,\"within_seconds\":60,\"content\":7}"));
        assert!(!damaged(&text));
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&place, &link).expect("links");
        assert!(matches!(find(&link), Found::Damaged(_)));
    }

    #[test]
    fn what_a_note_names_is_left_alone_where_it_is_another_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let [place, other, older] = ["note", "other", "older"].map(|name| folder.path().join(name));
        fs::write(&other, "precious").expect("writes");
        let before = Note { at: 1, ..noted(vec![older.clone()], Duration::from_secs(60)) };
        before.write().expect("writes");
        let claims = noted(vec![place.clone(), other.clone(), older.clone()], Duration::from_secs(60));
        fs::write(&place, serde_json::to_vec(&claims).expect("JSON")).expect("writes");
        let Found::Note(found) = find(&place) else { panic!("{:?}", find(&place)) };
        found.write().expect("writes");
        found.remove();
        assert_eq!(fs::read_to_string(&other).expect("reads"), "precious");
        assert!(older.exists() && !place.exists());
    }

    #[test]
    fn what_another_user_can_write_is_told_apart() {
        let folder = tempfile::tempdir().expect("a folder");
        let place = folder.path().join("note");
        noted(vec![place.clone()], Duration::from_secs(60)).write().expect("writes");
        // Only root can give a file away.
        if std::os::unix::fs::chown(&place, Some(65_534), None).is_ok() {
            assert!(matches!(find(&place), Found::Foreign(_, 65_534)), "{:?}", find(&place));
        }
    }

    #[test]
    fn a_note_that_cannot_be_read_is_not_a_damaged_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("file");
        fs::write(&file, "").expect("writes");
        // Also for root: below a file there is no folder.
        assert!(matches!(find(&file.join("note")), Found::Unreadable(_)));
        let place = folder.path().join("note");
        noted(vec![place.clone()], Duration::from_secs(60)).write().expect("writes");
        fs::set_permissions(&place, fs::Permissions::from_mode(0o000)).expect("a mode");
        let found = find(&place);
        assert!(matches!(found, Found::Unreadable(_)) || geteuid().is_root(), "{found:?}");
    }

    #[test]
    fn its_time_is_over_at_the_deadline_when_taken_back_and_never_longer_by_the_clock() {
        let within = Duration::from_secs(60);
        let note = noted(Vec::new(), within);
        assert_eq!(Note { at: note.at - 60_000, ..note.clone() }.left(), None);
        assert!(Note { at: note.at - 59_000, ..note.clone() }.left().is_some_and(|left| left <= within / 60));
        assert_eq!(Note { at: note.at + 3_600_000, ..note.clone() }.left(), Some(within));
        assert_eq!(Note { taken_back: Some("harm".into()), ..note }.left(), None);
    }

    #[test]
    fn without_a_state_file_it_is_beside_the_upgrade_socket() {
        let place = |state, sock| place(state, sock, None, Path::new("/etc/rrlb.yaml"));
        let (state, sock) = (Path::new("/var/state.json"), Path::new("/run/rrlb/upgrade.sock"));
        assert_eq!(place(Some(state), Some(sock)), Path::new("/var/state.json.unconfirmed"));
        assert_eq!(place(None, Some(sock)), Path::new("/run/rrlb/upgrade.sock.unconfirmed"));
        assert!(place(None, None).to_string_lossy().ends_with(".sock.unconfirmed"));
    }
}
