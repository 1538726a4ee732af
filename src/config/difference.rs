//! What is other between two models, key by key, and which of it takes a new process. Decides nothing about how a
//! difference is brought about.

use std::{collections::HashMap, fmt};

use x509_parser::prelude::{FromDer, X509Certificate};

use super::{
    certificate::date,
    effective::flow,
    model::Model,
    outline::{Content, Entries, Part, sections},
};

#[cfg(test)]
mod tests;

/// Longer values are not told.
const LONGEST_DETAIL: usize = 100;

/// One difference between two configurations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// `+` new, `-` gone, `~` changed.
    pub sign: char,
    /// The place in the file: `threads`, `upstreams.app.timeouts.read`, `upstreams.app.backends.a weight`,
    /// `listeners 0.0.0.0:80 limits.header_timeout`, `routes order`.
    pub path: String,
    /// What is other, such as `30s -> 10s`; empty where that would be long or may be secret.
    pub detail: String,
    /// Takes effect only in a new process.
    pub needs_upgrade: bool,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sign, path, detail, needs_upgrade } = self;
        let colon = if detail.is_empty() { "" } else { ": " };
        let mark = if *needs_upgrade { " (needs an upgrade)" } else { "" };
        write!(f, "{sign} {path}{colon}{detail}{mark}")
    }
}

/// Everything that is other in `new`, in the order of the file; empty where the two mean the same. The cost grows with
/// the size of the two, not with its square.
pub fn difference(old: &Model, new: &Model) -> Vec<Difference> {
    let on_tcp = |model: &Model| model.admin.as_ref().is_some_and(|admin| admin.tcp.is_some());
    let both_on_tcp = on_tcp(old) && on_tcp(new);
    let (old, new) = (sections(old), sections(new));
    let mut found = Found { needs_upgrade: false, differences: Vec::new() };
    for section in &old {
        found.needs_upgrade = section.needs_upgrade;
        match new.iter().find(|other| other.key == section.key) {
            Some(other) => found.compare(section.key, '.', &section.part, &other.part),
            None => found.push('-', section.key, summary(section.key, &section.part)),
        }
    }
    for section in new.iter().filter(|section| !old.iter().any(|other| other.key == section.key)) {
        found.needs_upgrade = section.needs_upgrade;
        found.push('+', section.key, summary(section.key, &section.part));
    }
    // Tokens and certificates of an API that stays are exchanged by a reload.
    for difference in found.differences.iter_mut().filter(|difference| both_on_tcp && is_key_of_admin(&difference.path))
    {
        difference.needs_upgrade = false;
    }
    found.differences
}

/// Whether a path is that of a secret of the admin API or of its TLS, but not of whether there is TLS.
fn is_key_of_admin(path: &str) -> bool {
    matches!(path, "admin.token_file" | "admin.read_token_file") || path.starts_with("admin.tls.")
}

struct Found {
    needs_upgrade: bool,
    differences: Vec<Difference>,
}

impl Found {
    fn push(&mut self, sign: char, path: &str, detail: String) {
        let (path, needs_upgrade) = (path.to_owned(), self.needs_upgrade);
        self.differences.push(Difference { sign, path, detail, needs_upgrade });
    }

    /// Compares what stands at a path; `joint` stands before keys below it.
    fn compare(&mut self, path: &str, joint: char, old: &Part<'_>, new: &Part<'_>) {
        if old == new {
            return;
        }
        match (old, new) {
            (Part::Map(old), Part::Map(new)) => self.entries(path, (joint, '.'), old, new),
            (Part::Items(old), Part::Items(new)) => {
                self.entries(path, old.joints, &old.items, &new.items);
                if old.ordered {
                    self.order(path, &old.items, &new.items);
                }
            }
            (Part::Content(old), Part::Content(new)) => self.push('~', path, renewed(old, new)),
            (Part::File(old, held), Part::File(new, holds)) if old == new => {
                self.push('~', path, renewed(held, holds));
            }
            (old, new) if is_off(old, new) => self.push('+', path, summary(path, new)),
            (old, new) if is_off(new, old) => self.push('-', path, summary(path, old)),
            _ => self.push('~', path, change(old, new)),
        }
    }

    fn entries(&mut self, path: &str, joints: (char, char), old: &Entries<'_>, new: &Entries<'_>) {
        let below = |key: &str| if key.is_empty() { path.to_owned() } else { format!("{path}{}{key}", joints.0) };
        let (was, is) = (index(old), index(new));
        for (key, part) in old {
            match is.get(&**key) {
                Some(other) => self.compare(&below(key), joints.1, part, other),
                None => self.push('-', &below(key), summary(key, part)),
            }
        }
        for (key, part) in new.iter().filter(|(key, _)| !was.contains_key(&**key)) {
            self.push('+', &below(key), summary(key, part));
        }
    }

    /// Items that are in both, in another order.
    fn order(&mut self, path: &str, old: &Entries<'_>, new: &Entries<'_>) {
        let (was, is) = (index(old), index(new));
        let stayed = old.iter().map(|(key, _)| &**key).filter(|key| is.contains_key(key));
        let now = new.iter().map(|(key, _)| &**key).filter(|key| was.contains_key(key));
        if !stayed.clone().eq(now.clone()) {
            let join = |keys: &mut dyn Iterator<Item = &str>| keys.collect::<Vec<_>>().join(", ");
            let (mut stayed, mut now) = (stayed, now);
            let detail = short(format!("{} -> {}", join(&mut stayed), join(&mut now)));
            self.push('~', &format!("{path} order"), detail);
        }
    }
}

fn index<'a, 'm>(entries: &'a Entries<'m>) -> HashMap<&'a str, &'a Part<'m>> {
    entries.iter().map(|(key, part)| (&**key, part)).collect()
}

/// Whether `part` says that there is nothing where `other` has something.
fn is_off(part: &Part<'_>, other: &Part<'_>) -> bool {
    match part {
        Part::Null => true,
        Part::Bare(word) => word == "off" && matches!(other, Part::Map(_)),
        _ => false,
    }
}

/// `1 -> 2`
fn change(old: &Part<'_>, new: &Part<'_>) -> String {
    if matches!(old, Part::Hidden(_)) || matches!(new, Part::Hidden(_)) {
        return String::new();
    }
    short(format!("{} -> {}", shown(old), shown(new)))
}

/// Something that is new or gone, in short: a value, or a mapping's address where its key does not say it.
fn summary(key: &str, part: &Part<'_>) -> String {
    match part {
        Part::Map(entries) => {
            let address = entries.iter().find(|(name, _)| name == "address");
            address.map(|(_, part)| shown(part)).filter(|address| !key.starts_with(&**address)).unwrap_or_default()
        }
        Part::Content(_) | Part::Hidden(_) | Part::Items(_) => String::new(),
        part => short(shown(part)),
    }
}

/// A value for people, in quotes only where it has to be.
fn shown(part: &Part<'_>) -> String {
    match part {
        Part::File(text, _) | Part::Text(text) if !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic()) => {
            text.to_string()
        }
        part => flow(part),
    }
}

fn short(detail: String) -> String {
    if detail.len() <= LONGEST_DETAIL { detail } else { String::new() }
}

/// Other contents of a file whose path may have stayed.
fn renewed(old: &Content<'_>, new: &Content<'_>) -> String {
    const OTHER: &str = "other contents";
    let (Content::Certificates(old), Content::Certificates(new)) = (old, new) else { return OTHER.to_owned() };
    let (Some(old), Some(new)) = (old.first().and_then(|der| parsed(der)), new.first().and_then(|der| parsed(der)))
    else {
        return OTHER.to_owned();
    };
    let serial = |certificate: &X509Certificate<'_>| certificate.raw_serial_as_string().replace(':', "");
    let (was, is) = (serial(&old), serial(&new));
    if was == is {
        return OTHER.to_owned();
    }
    format!("serial {was} -> {is}, valid until {}", date(new.validity().not_after))
}

fn parsed(der: &[u8]) -> Option<X509Certificate<'_>> {
    X509Certificate::from_der(der).ok().map(|(_, certificate)| certificate)
}
