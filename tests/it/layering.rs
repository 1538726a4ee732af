//! The floors of `docs/architecture.md`, held: a file imports from lower floors only, neighbours do not import each
//! other, and no file grows without end.

use std::path::{Path, PathBuf};

/// A module's floor; what is not named here is the top.
fn floor(module: &str) -> usize {
    match module {
        "types" => 0,
        "policy" | "telemetry" => 1,
        "config" => 2,
        "runtime" => 3,
        "proxy" => 4,
        "listener" | "service" => 5,
        _ => 6,
    }
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder of the sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn all() -> Vec<(String, PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    sources(&root, &mut found);
    let module = |path: &Path| {
        let first = path.strip_prefix(&root).expect("below src").components().next().expect("a name");
        first.as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned()
    };
    found.into_iter().map(|path| (module(&path), path.clone(), std::fs::read_to_string(&path).expect("text"))).collect()
}

/// The modules that `text` names after `crate::`, in `use crate::{a::…, b::…}` too.
fn imports(text: &str) -> Vec<String> {
    let word = |text: &str| -> String { text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect() };
    let mut found = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        let Some(list) = rest.strip_prefix('{') else {
            found.push(word(rest));
            continue;
        };
        let (mut depth, mut item) = (1, String::new());
        for c in list.chars() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if depth == 0 || (depth == 1 && c == ',') {
                found.push(word(item.trim()));
                item.clear();
            } else {
                item.push(c);
            }
            if depth == 0 {
                break;
            }
        }
    }
    found.retain(|name| !name.is_empty());
    found
}

#[test]
fn imports_go_down_the_floors_only() {
    let mut wrong = Vec::new();
    for (module, path, text) in all() {
        for import in imports(&text) {
            let same = import == module;
            let top = floor(&module) == 6;
            if !same && !top && floor(&import) >= floor(&module) {
                wrong.push(format!("{}: {module} imports {import}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_import_reader_sees_what_is_there() {
    let text = "use crate::{config::model::{self, Model}, types::Name};\nlet x = crate::proxy::App;";
    assert_eq!(imports(text), ["config", "types", "proxy"]);
}

#[test]
fn no_file_is_longer_than_500_lines_without_its_tests() {
    for (_, path, text) in all() {
        let lines = text.lines().take_while(|line| *line != "#[cfg(test)]").count();
        assert!(lines <= 500, "{}: {lines} lines", path.display());
    }
}

#[test]
fn every_file_says_what_it_decides() {
    for (_, path, text) in all() {
        assert!(text.starts_with("//!"), "{} begins without `//!`", path.display());
    }
}
