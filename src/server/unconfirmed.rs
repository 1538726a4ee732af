//! What a start makes of a configuration file that was to be confirmed and was not. Before the deadline it runs with the
//! file and goes on counting; after it, or where the file was taken back, it runs with the last confirmed
//! configuration. A file that is another by now is what somebody wants, and counts. The file itself is never written.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{
    confirm::{Abort, Answers, Pending},
    note::{self, Found, Note, NotedMerged, Source},
    reload,
    running::Running,
};
use crate::{
    config::{self, Format, Loaded, Report, model::Model},
    runtime::journal::{self, Journal},
};

/// What a process begins with.
#[derive(Debug)]
pub struct Beginning {
    /// The configuration, and what does not stop the start.
    pub loaded: Loaded,
    pub(super) past: Past,
}

/// Where a configuration came from, and what was noted of it.
#[derive(Debug)]
pub(super) struct Past {
    pub(super) source: Source,
    pub(super) standing: Standing,
    tidy: Tidy,
    /// Where the note is looked for by who reads the same file, and what was found there.
    place: PathBuf,
    seen: Option<Note>,
}

/// How what runs stands to the file.
#[derive(Debug)]
pub(super) enum Standing {
    /// It is the file.
    File,
    /// It is the file, though that should be taken back; the text says why it cannot be.
    Kept(String),
    /// It is the last confirmed configuration; the text says why.
    TakenBack(String),
    /// It is the file; the text says why it is not known whether that is confirmed.
    Unknown(String),
    /// It is the file, for so long, and then `before`.
    Waiting { left: Duration, before: Box<Model> },
}

/// What is to be done with what was found beside the state file, when this process is the one that serves.
#[derive(Debug, Default)]
pub(super) enum Tidy {
    #[default]
    Nothing,
    /// It cannot be read, and is left where it is until somebody keeps what the file says.
    Leave,
    Remove,
    SetAside(String),
    /// It was taken back by this start.
    Mark(String),
}

impl Beginning {
    /// With a file's text, whatever may be noted of it.
    pub fn with(loaded: Loaded, text: &str, file: &Path) -> Self {
        let source = Source::new(file, text.to_owned());
        let place = place_of(&loaded.model, file);
        Self { loaded, past: Past { source, standing: Standing::File, tidy: Tidy::Nothing, place, seen: None } }
    }

    /// Reads the file, and what is noted of it. Changes nothing: another process may be the one that serves.
    ///
    /// # Errors
    /// Neither the file nor what was confirmed before can be run with.
    pub fn of(file: &Path) -> Result<Self, Report> {
        let text = config::text(file)?;
        let parsed = config::parse(&text, file);
        let place = match &parsed {
            Ok(loaded) => place_of(&loaded.model, file),
            Err(_) => {
                let place = config::place_in(&text, file);
                let (state, socket) = (place.state_file.as_deref(), place.upgrade_sock.as_deref());
                note::place(state, socket, place.user.as_deref(), file)
            }
        };
        let found = note::find(&place);
        let source = Source::new(file, text);
        let begin = |loaded, source, standing, tidy, seen| {
            let place = place.clone();
            Self { loaded, past: Past { source, standing, tidy, place, seen } }
        };
        let without = |loaded, source, standing, tidy| begin(loaded, source, standing, tidy, None);
        let mut note = match found {
            Found::Nothing => return Ok(without(parsed?, source, Standing::File, Tidy::Nothing)),
            Found::Damaged(why) => return Ok(without(parsed?, source, Standing::File, Tidy::SetAside(why))),
            Found::Unreadable(why) => {
                let why = format!("{} cannot be read: {why}", place.display());
                return Ok(without(parsed?, source, Standing::Unknown(why), Tidy::Leave));
            }
            Found::Foreign(note, owner) => {
                // Who can write it could have this process, which may be root, do anything.
                let why = format!("{} belongs to user {owner}, and this start is of another", place.display());
                let about = note.is_about(&source.text);
                let standing = if about { Standing::Kept(why.clone()) } else { Standing::File };
                return Ok(without(parsed?, source, standing, Tidy::SetAside(why)));
            }
            Found::Note(note) => *note,
        };
        let before = config::parse(&note.confirmed().text, &note.confirmed().file);
        if let Ok(before) = &before {
            let place = place_of(&before.model, &note.confirmed().file);
            if !note.places.contains(&place) {
                note.places.push(place);
            }
        }
        if !note.is_about(&source.text) {
            return Ok(begin(parsed?, source, Standing::File, Tidy::Remove, Some(note)));
        }
        let over = || note.taken_back.clone().unwrap_or_else(|| format!("not confirmed within {:?}", note.within()));
        let standing = match (note.left(), &parsed, before) {
            (Some(left), Ok(loaded), Ok(before)) => {
                // As it ran when it was loaded: what takes an upgrade was not tried.
                let model = reload::runnable(&before.model, loaded.model.clone());
                let loaded = Loaded { model, warnings: loaded.warnings.clone() };
                let standing = Standing::Waiting { left, before: Box::new(before.model) };
                return Ok(begin(loaded, source, standing, Tidy::Nothing, Some(note)));
            }
            (left, _, Ok(before)) => {
                let invalid = |report: &Report| format!("it is not valid any more: {}", first_line(report));
                let why = left.and(parsed.as_ref().err()).map_or_else(over, invalid);
                let (confirmed, tidy) = (note.confirmed().clone(), Tidy::Mark(why.clone()));
                return Ok(begin(before, confirmed, Standing::TakenBack(why), tidy, Some(note)));
            }
            (_, Ok(_), Err(report)) => {
                let why = first_line(&report);
                Standing::Kept(format!("the last confirmed configuration is not valid any more: {why}"))
            }
            (_, Err(_), Err(_)) => Standing::File,
        };
        Ok(begin(parsed?, source, standing, Tidy::Nothing, Some(note)))
    }
}

impl Past {
    /// Whether what is noted is another than when this was made: a reload was confirmed, or taken back.
    pub(super) fn is_outdated(&self) -> bool {
        let now = match note::find(&self.place) {
            Found::Note(note) => Some(*note),
            Found::Damaged(_) | Found::Foreign(..) | Found::Nothing | Found::Unreadable(_) => None,
        };
        !match (&now, &self.seen) {
            (Some(now), Some(seen)) => now.says_as(seen),
            (now, seen) => now.is_none() && seen.is_none(),
        }
    }

    /// Whether this start is without the reload that was noted.
    pub(super) fn is_undone(&self) -> bool {
        matches!(self.tidy, Tidy::Mark(_) | Tidy::Remove)
    }

    /// What was made of overrides by the reload that is not confirmed.
    pub(super) fn merged(&self) -> Option<(journal::Overrides, journal::Overrides)> {
        let NotedMerged { before, after } = self.seen.as_ref()?.merged.as_ref()?;
        let decoded = |text: &str| {
            let read = journal::decode(text.as_bytes(), 0);
            read.inspect_err(|error| log::error!("{}: {error}", self.place.display())).ok()
        };
        Some((decoded(before)?, decoded(after)?))
    }
}

fn place_of(model: &Model, file: &Path) -> PathBuf {
    let process = &model.process;
    note::place(model.state_file.as_deref(), process.upgrade_sock.as_deref(), process.user.as_deref(), file)
}

fn first_line(report: &Report) -> String {
    report.render(Format::Short).lines().next().unwrap_or_default().to_owned()
}

/// The note of this process.
#[derive(Debug)]
pub(super) struct Unconfirmed {
    /// Where it is.
    place: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// As it is on the disk.
    note: Option<Note>,
    tidy: Tidy,
}

impl Unconfirmed {
    /// As a process begins that runs with `model`, which came from `file`.
    pub(super) fn of(past: &mut Past, model: &Model, file: &Path) -> Self {
        let tidy = std::mem::take(&mut past.tidy);
        let place = match tidy {
            Tidy::Leave | Tidy::SetAside(_) => past.place.clone(),
            _ => place_of(model, file),
        };
        Self { place, state: Mutex::new(State { note: past.seen.take(), tidy }) }
    }

    /// A file is about to be loaded that is to be confirmed. Returns what was noted before. `tried` is where a start with
    /// the new file looks.
    pub(super) fn note(&self, new: note::Tried<'_>, model: &Model, file: &Path) -> (Option<Note>, io::Result<()>) {
        let mut places = vec![self.place.clone(), place_of(model, file)];
        places.dedup();
        let note = Note::new(new, places);
        let written = note.write();
        let mut state = self.lock();
        state.tidy = Tidy::Nothing;
        (state.note.replace(note), written)
    }

    /// What was noted last has not come to be.
    pub(super) fn put_back(&self, before: Option<Note>) {
        let mut state = self.lock();
        if let Some(note) = std::mem::replace(&mut state.note, before) {
            note.remove();
        }
        rewrite(state.note.as_ref());
    }

    /// What the reload has made of overrides.
    pub(super) fn merged(&self, merged: NotedMerged) {
        let mut state = self.lock();
        if let Some(note) = &mut state.note {
            note.merged = Some(merged);
        }
        rewrite(state.note.as_ref());
    }

    /// It was taken back, so that the next start does not run with it. `kept`: the journal has the overrides again that
    /// it had taken; else the note has them until [`Unconfirmed::tidy`] is called.
    pub(super) fn take_back(&self, why: &str, kept: bool) {
        let mut state = self.lock();
        if !kept {
            state.tidy = Tidy::Mark(why.to_owned());
        }
        if let Some(note) = &mut state.note {
            note.taken_back = Some(why.to_owned());
            if kept {
                note.merged = None;
            }
        }
        rewrite(state.note.as_ref());
    }

    /// What is noted.
    fn noted(&self) -> Option<Note> {
        self.lock().note.clone()
    }

    /// Somebody keeps what the file says.
    pub(super) fn settle(&self) {
        let mut state = self.lock();
        if let Tidy::Leave = std::mem::take(&mut state.tidy) {
            note::remove(&self.place);
        }
        if let Some(note) = state.note.take() {
            note.remove();
        }
    }

    /// Does what the start has found to be done. To be called when this process is the one that serves,
    /// and the journal has its overrides: the note has those of before.
    pub(super) fn tidy(&self) {
        let mut state = self.lock();
        match std::mem::take(&mut state.tidy) {
            Tidy::Nothing => {}
            Tidy::Leave => state.tidy = Tidy::Leave,
            Tidy::Remove => {
                drop(state);
                log::info!("the configuration file is another than the one that was to be confirmed: it counts");
                self.settle();
            }
            Tidy::SetAside(why) => {
                let path = self.place.display();
                match Journal::new(&self.place).set_aside() {
                    Ok(aside) => log::error!(
                        "{path} is no note of rrlb, or is damaged ({why}): whether the configuration file was confirmed is not \
                         known, and it counts; what was there is kept as {}",
                        aside.display()
                    ),
                    Err(error) => log::error!("{path} is no note of rrlb ({why}), and cannot be moved aside: {error}"),
                }
            }
            Tidy::Mark(why) => {
                drop(state);
                self.take_back(&why, true);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn rewrite(note: Option<&Note>) {
    if let Some(Err(error)) = note.map(Note::write) {
        log::warn!("{error}; were this process killed, the next start would not know all of what was confirmed");
    }
}

impl Running {
    /// Says how what this start runs with stands to the file, and goes on counting where it waits.
    pub(super) fn stand(&self, standing: Standing) {
        let file = self.file.display();
        match standing {
            Standing::File => {}
            Standing::Waiting { left, before } => {
                if let Some((before, after)) = self.store.merged_texts() {
                    self.unconfirmed.merged(NotedMerged { before, after });
                }
                let mut ledger = self.ledger();
                let Some(note) = self.unconfirmed.noted() else { return };
                let (who, within, source) = (&note.who, note.within(), note.confirmed().clone());
                let until = Answers::from(self.metrics.answers());
                let abort = note.abort().map(|(above, minute)| Abort { above, minute, until });
                let due = Instant::now() + left;
                // None of its proxies is left.
                let proxies = Vec::new();
                let before = Arc::new(*before);
                ledger.pending = Some(Pending { before, source, proxies, within, due, abort, failed: None });
                drop(ledger);
                let left = Duration::from_secs(left.as_secs());
                let what = format!(
                    "{file} was loaded by {who} to be confirmed within {within:?}; this start goes back in {left:?} \
                     unless `rrlb confirm` comes"
                );
                self.tell("config.unconfirmed", "rrlb", what, String::new());
            }
            Standing::TakenBack(why) => {
                let text = format!(
                    "this start runs with the last confirmed configuration, and not with {file}: {why}; `rrlb reload` runs \
                     with the file all the same"
                );
                log::error!("{text}");
                let mut ledger = self.ledger();
                (ledger.last_error, ledger.taken_back) = (text, Some(why.clone()));
                drop(ledger);
                let what = format!("started with the last confirmed configuration in place of {file}");
                self.tell("config.reverted", "rrlb", what, why);
            }
            Standing::Kept(why) => {
                let text = format!(
                    "{file} was to be confirmed, nobody has confirmed it, and it cannot be taken back: {why}; this start runs \
                     with it all the same: keep it with `rrlb confirm`, or put the one before it back and `rrlb reload`"
                );
                self.run_with_unconfirmed(text);
            }
            Standing::Unknown(why) => {
                let text = format!(
                    "whether {file} was confirmed is not known: {why}; this start runs with it all the same: keep it with \
                     `rrlb confirm`, or see to it that the note can be read, and start again"
                );
                self.run_with_unconfirmed(text);
            }
        }
    }

    fn run_with_unconfirmed(&self, text: String) {
        log::error!("{text}");
        let mut ledger = self.ledger();
        (ledger.last_error, ledger.kept_unconfirmed) = (text.clone(), true);
        drop(ledger);
        self.tell("config.unconfirmed", "rrlb", text, String::new());
    }
}
