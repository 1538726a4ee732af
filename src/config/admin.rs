//! `admin`: where the admin API is reached, and who may use it. Tokens are read here, from files, and never printed.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    certificate::{Certificates, read_file},
    decode::{Decoder, Fields, Item, Table, table, value},
    listener::{chosen_certificates, min_version},
    model::{Admin, AdminTcp, Alpn, CipherProfile, Listener, ListenerTls, Token},
};
use crate::types::ListenAddress;

pub(super) const ADMIN: Table = Table {
    what: "the admin API",
    keys: &[
        value("socket", "admin.sock in the folder of the upgrade socket"),
        value("address", "none: no TCP"),
        value("token_file", "required with address"),
        value("read_token_file", "none"),
        table("tls", "none: plain text, on loopback only", &TLS),
    ],
};

const TLS: Table =
    Table { what: "the admin API's tls", keys: &[value("certificates", "required"), value("min_version", "\"1.2\"")] };

/// Shorter tokens can be guessed.
const SHORTEST_TOKEN: usize = 16;
/// Longer ones do not fit a request's head everywhere.
const LONGEST_TOKEN: usize = 4096;
const TOKEN_HELP: &str = "make one: openssl rand -hex 32 > FILE";

/// Addresses that are given away already.
pub(super) struct Taken<'a> {
    pub(super) listeners: &'a [Listener],
    pub(super) metrics: Option<SocketAddr>,
    pub(super) upgrade_sock: Option<&'a Path>,
}

/// Whether the file asks for an admin API, right or wrong.
pub(super) fn is_wanted(d: &Decoder<'_>, item: Option<&Item<'_>>) -> bool {
    item.is_some_and(|item| !d.is_word(item, "off"))
}

/// Decodes `admin`.
pub(super) fn decode(
    d: &mut Decoder<'_>,
    item: Option<Item<'_>>,
    certificates: &Certificates,
    taken: &Taken<'_>,
) -> Option<Option<Admin>> {
    let Some(item) = item.filter(|item| is_wanted(d, Some(item))) else { return Some(None) };
    let fields = d.fields(&item, &ADMIN)?;
    let socket = fields.get("socket").map_or(Some(None), |item| socket(d, &item, taken).map(Some));
    let tcp = tcp(d, &fields, certificates, taken);
    Some(Some(Admin { socket: socket?, tcp: tcp? }))
}

fn socket(d: &mut Decoder<'_>, item: &Item<'_>, taken: &Taken<'_>) -> Option<PathBuf> {
    let text = d.string(item)?;
    if text.starts_with("unix:") {
        d.error(
            item,
            "bad-path",
            "a socket's path is needed",
            "write it without `unix:`, such as /run/rrlb/admin.sock",
        );
        return None;
    }
    let path = d.socket_path(item, &text)?;
    let listens = |listener: &Listener| matches!(&listener.address, ListenAddress::Unix(other) if *other == path);
    let other = match () {
        () if taken.listeners.iter().any(listens) => "the address of a listener",
        () if taken.upgrade_sock == Some(path.as_path()) => "the upgrade socket",
        () => return Some(path),
    };
    let message = format!("`{}` is {other} too", item.node.shown());
    d.error(item, "duplicate-listener", message, "give the admin API a socket of its own");
    Some(path)
}

fn tcp(
    d: &mut Decoder<'_>,
    fields: &Fields<'_>,
    certificates: &Certificates,
    taken: &Taken<'_>,
) -> Option<Option<AdminTcp>> {
    let token = optional(fields, "token_file", |item| token(d, &item));
    let read_token = optional(fields, "read_token_file", |item| token_unlike(d, &item, token.as_ref()));
    let tls = optional(fields, "tls", |item| tls(d, &item, certificates));

    let Some(item) = fields.get("address") else {
        for item in ["token_file", "read_token_file", "tls"].into_iter().filter_map(|name| fields.get(name)) {
            let key = item.path.rsplit('.').next().unwrap_or_default();
            let message = format!("`{key}` has no effect without `address`: the socket is guarded by its mode");
            d.warn_at(item.node.head(), &item.path, "no-effect", message, "add `address`, or take it out");
        }
        return (token.is_some() && read_token.is_some() && tls.is_some()).then_some(None);
    };
    if fields.get("token_file").is_none() {
        let message = "`address` needs `token_file`: whoever reaches the port could change everything";
        d.error_at(item.node.head(), &item.path, "missing-token", message, TOKEN_HELP);
    }
    let address = d.inet_address(&item, "127.0.0.1:9180 or \"[::1]:9180\"")?;
    if !address.ip().to_canonical().is_loopback() && fields.get("tls").is_none() {
        let message =
            format!("`{}` is not a loopback address: the token would be sent in plain text", item.node.shown());
        let help = "add `tls: { certificates: [NAME] }`, or bind 127.0.0.1";
        d.error(&item, "admin-without-tls", message, help);
    }
    let listens = |listener: &Listener| listener.address == ListenAddress::Inet(address);
    let other = match () {
        () if address.port() == 0 => None,
        () if taken.listeners.iter().any(listens) => Some("a listener"),
        () if taken.metrics == Some(address) => Some("`metrics`"),
        () => None,
    };
    if let Some(other) = other {
        let message = format!("`{}` is the address of {other} too", item.node.shown());
        d.error(&item, "duplicate-listener", message, "give the admin API a port of its own");
    }
    Some(Some(AdminTcp { address, token: token??, read_token: read_token?, tls: tls? }))
}

/// `Some(None)` where the key is not there, `None` where it is wrong.
fn optional<'t, T>(fields: &Fields<'t>, name: &str, decode: impl FnOnce(Item<'t>) -> Option<T>) -> Option<Option<T>> {
    fields.get(name).map_or(Some(None), |item| decode(item).map(Some))
}

/// A token from its file, less one line break at the end.
fn token(d: &mut Decoder<'_>, item: &Item<'_>) -> Option<Token> {
    const MISSING: &str =
        "make one: openssl rand -hex 32 > FILE; relative paths begin at the configuration file's directory";
    let path = d.path(item)?;
    let content = read_file(d, item, &path, MISSING)?;
    let line = content.strip_suffix(b"\n").unwrap_or(&content);
    let token = line.strip_suffix(b"\r").unwrap_or(line);
    let fault = match token.len() {
        0..SHORTEST_TOKEN => Some(format!("a token has at least {SHORTEST_TOKEN} bytes; this one has {}", token.len())),
        length if length > LONGEST_TOKEN => Some(format!("a token has at most {LONGEST_TOKEN} bytes")),
        _ if !token.iter().all(u8::is_ascii_graphic) => {
            Some("a token is one line of visible ASCII without blanks".to_owned())
        }
        _ => None,
    };
    if let Some(message) = fault {
        d.error(item, "bad-token", message, TOKEN_HELP);
        return None;
    }
    // A group may be meant to read a token; nobody is meant to write one, or to read it along with everybody.
    let mode = d.files.mode(&path);
    if mode & 0o027 != 0 {
        let message = format!("others may read or change the token file (mode {mode:04o})");
        d.warn_at(item.node.mark(), &item.path, "open-token-file", message, "chmod 600, or 640 for a group");
    }
    Some(Token { secret: Arc::from(token), path })
}

/// The token that may only look; as the other one it could do everything.
fn token_unlike(d: &mut Decoder<'_>, item: &Item<'_>, other: Option<&Option<Token>>) -> Option<Token> {
    let read_token = token(d, item)?;
    if other.and_then(Option::as_ref).is_some_and(|other| other.secret == read_token.secret) {
        let message = "the token in `read_token_file` is the one in `token_file`: it could do everything";
        d.error(item, "same-token", message, "make another one: openssl rand -hex 32 > FILE");
        return None;
    }
    Some(read_token)
}

fn tls(d: &mut Decoder<'_>, item: &Item<'_>, certificates: &Certificates) -> Option<ListenerTls> {
    let fields = d.fields(item, &TLS)?;
    let certificates = chosen_certificates(d, &fields, certificates);
    let min_version = min_version(d, &fields);
    Some(ListenerTls {
        certificates: certificates?,
        profile: CipherProfile::Intermediate,
        min_version: min_version?,
        alpn: vec![Alpn::Http1],
        client_auth: None,
        strict_sni: false,
        keylog: false,
    })
}
