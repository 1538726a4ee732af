//! The few keys that say where a file's process is reached. Read apart from everything else, so that a file which is not
//! valid any more, or whose certificates only another user may read, does not keep anybody from the running process.

use std::path::{Path, PathBuf};

use super::{
    LARGEST_FILE,
    decode::{Decoder, Item},
    reason,
    tree::{self, Node, Value},
};

/// What a file says about where its process is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The file has `admin:`.
    pub admin: bool,
    /// `admin.socket`, absolute.
    pub socket: Option<PathBuf>,
    /// `upgrade_sock`, absolute.
    pub upgrade_sock: Option<PathBuf>,
    /// `user`.
    pub user: Option<String>,
    /// `state_file`, absolute.
    pub state_file: Option<PathBuf>,
}

/// Reads what can be read of a file, whatever else is wrong with it.
///
/// # Errors
/// The file cannot be read at all; the text says why.
pub fn place(path: &Path) -> Result<Place, String> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| std::io::Read::read_to_end(&mut std::io::Read::take(file, LARGEST_FILE), &mut bytes))
        .map_err(|error| reason(&error))?;
    Ok(place_in(&String::from_utf8_lossy(&bytes), path))
}

/// As [`place`], of a text that was read from `path`.
pub fn place_in(text: &str, path: &Path) -> Place {
    of_text(text, path, &|name| std::env::var(name).ok())
}

pub(super) fn of_text(text: &str, file: &Path, env: &dyn Fn(&str) -> Option<String>) -> Place {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut decoder = Decoder::new(file, env, Vec::new());
    let mut place = Place::default();
    match tree::read(text, "", &mut Vec::new()) {
        Some(root) => place.take(&mut decoder, &root),
        // No YAML as a whole: one key of the top level at a time.
        None => {
            for part in parts(text) {
                if let Some(root) = tree::read(part, "", &mut Vec::new()) {
                    place.take(&mut decoder, &root);
                }
            }
        }
    }
    place
}

impl Place {
    fn take(&mut self, d: &mut Decoder<'_>, root: &Node) {
        let root = Item { node: root, path: String::new() };
        if let Some(admin) = below(&root, "admin").filter(|admin| !d.is_word(admin, "off")) {
            self.admin = true;
            self.socket = below(&admin, "socket").and_then(|item| socket(d, &item)).or(self.socket.take());
        }
        self.upgrade_sock = below(&root, "upgrade_sock").and_then(|item| socket(d, &item)).or(self.upgrade_sock.take());
        self.user = below(&root, "user").and_then(|item| d.string(&item)).or(self.user.take());
        self.state_file = below(&root, "state_file").and_then(|item| d.path(&item)).or(self.state_file.take());
    }
}

fn socket(d: &mut Decoder<'_>, item: &Item<'_>) -> Option<PathBuf> {
    let text = d.string(item)?;
    d.socket_path(item, &text)
}

fn below<'t>(item: &Item<'t>, key: &str) -> Option<Item<'t>> {
    let Value::Map(entries) = &item.node.value else { return None };
    let entry = entries.iter().find(|entry| &*entry.key == key)?;
    (!matches!(entry.node.value, Value::Null)).then(|| Item { node: &entry.node, path: String::new() })
}

/// The text cut before every line that begins in the first column.
fn parts(text: &str) -> Vec<&str> {
    let mut cuts = vec![0];
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        if at > 0 && line.starts_with(|c: char| c.is_ascii_alphabetic()) {
            cuts.push(at);
        }
        at += line.len();
    }
    cuts.push(text.len());
    cuts.iter().zip(cuts.iter().skip(1)).filter_map(|(from, to)| text.get(*from..*to)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place_of(text: &str) -> Place {
        of_text(text, Path::new("/etc/rrlb/rrlb.yaml"), &|name| (name == "RUN").then(|| "/run/x".to_owned()))
    }

    #[test]
    fn a_file_with_unknown_keys_still_names_its_socket() {
        let place = place_of("thread: 1\nuser: www\nadmin: { socket: \"${RUN}/admin.sock\", adress: 1 }\n");
        let socket = Some("/run/x/admin.sock".into());
        assert_eq!(place, Place { admin: true, socket, user: Some("www".into()), ..Place::default() });
    }

    #[test]
    fn a_file_that_is_no_yaml_still_names_its_socket() {
        let text = "listeners: [ { address\n\nadmin:\n  # here\n  socket: run/a.sock\nupgrade_sock: /run/u.sock\nstate_file: s.json\nx: }\n";
        let place = place_of(text);
        assert_eq!(place.socket, Some("/etc/rrlb/run/a.sock".into()));
        assert_eq!(place.upgrade_sock, Some("/run/u.sock".into()));
        assert_eq!(place.state_file, Some("/etc/rrlb/s.json".into()));
    }

    #[test]
    fn a_file_that_says_nothing_about_it_is_told_apart() {
        assert_eq!(place_of(""), Place::default());
        assert_eq!(place_of("admin:\nuser: ~\n"), Place::default());
        assert!(place_of("admin: {}\n").admin && !place_of("admin: off\n").admin);
        assert!(place(Path::new("/nonexistent/rrlb.yaml")).expect_err("no file").contains("no such file"));
    }
}
