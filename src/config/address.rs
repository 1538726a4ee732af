//! Addresses as operators write them, and the mistakes they make with them.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use ipnet::IpNet;

use super::{
    decode::{Decoder, Item},
    tree::Value,
};
use crate::types::{BackendAddress, HostPort, ListenAddress};

/// `sun_path` less its ending zero.
const LONGEST_SOCKET_PATH: usize = 107;

impl Decoder<'_> {
    /// A listener's address. Port 0 is any free port.
    pub(super) fn listen_address(&mut self, item: &Item<'_>) -> Option<ListenAddress> {
        let text = self.address_text(item)?;
        if let Some(path) = text.strip_prefix("unix:") {
            return self.socket_path(item, path).map(ListenAddress::Unix);
        }
        self.socket_address(item, &text, "0.0.0.0:8080, \"[::]:8080\" or unix:/run/rrlb.sock").map(ListenAddress::Inet)
    }

    /// An IP address and port. Port 0 is any free port.
    pub(super) fn inet_address(&mut self, item: &Item<'_>) -> Option<SocketAddr> {
        let text = self.address_text(item)?;
        self.socket_address(item, &text, "127.0.0.1:9145 or \"[::1]:9145\"")
    }

    /// A backend's address.
    pub(super) fn backend_address(&mut self, item: &Item<'_>) -> Option<BackendAddress> {
        const FORMS: &str = "write 10.0.0.11:3000, \"[fd00::11]:3000\", app.internal:3000 or unix:/run/app.sock";
        let text = self.address_text(item)?;
        let read = backend_address(&text, Some(self.base), &item.node.shown(), FORMS);
        self.reported(item, read)
    }

    /// A network, or one address; bits behind the prefix must be 0.
    pub(super) fn network(&mut self, item: &Item<'_>) -> Option<IpNet> {
        let text = self.address_text(item)?;
        let network = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
        let Some(network) = network else {
            let message = format!("`{}` is not a network", item.node.shown());
            self.error(item, "bad-network", message, "write 10.0.0.0/8, \"fd00::/8\" or one address");
            return None;
        };
        if network.trunc() != network {
            let message = format!("`{}` has bits set behind its prefix", item.node.shown());
            self.error(item, "bad-network", message, "write the network's first address, or a longer prefix");
            return None;
        }
        Some(network)
    }

    fn address_text(&mut self, item: &Item<'_>) -> Option<String> {
        // `[::1]` without quotes is a list to YAML.
        if let Value::List(nodes) = &item.node.value
            && nodes.iter().all(|node| matches!(node.value, Value::Scalar { .. } | Value::Map(_)))
        {
            let message = "an address with brackets needs quotes; without them YAML reads a list";
            self.error(item, "unquoted-address", message, "write \"[::1]:8080\"");
            return None;
        }
        Some(self.scalar(item, "an address")?.value)
    }

    fn socket_address(&mut self, item: &Item<'_>, text: &str, forms: &str) -> Option<SocketAddr> {
        if let Ok(address) = text.parse() {
            return Some(address);
        }
        let why = match host_port(text) {
            Ok(_) => "the address of an interface is needed, not a host name",
            Err(fault) => fault.message(),
        };
        let message = format!("`{}` is not an address: {why}", item.node.shown());
        self.bad_address(item, &message, &format!("write {forms}"));
        None
    }

    fn bad_address(&mut self, item: &Item<'_>, message: &str, help: &str) {
        self.error(item, "bad-address", message, help);
    }

    /// A unix socket's path, made absolute; the kernel bounds its length.
    pub(super) fn socket_path(&mut self, item: &Item<'_>, text: &str) -> Option<PathBuf> {
        let read = socket_path(text, Some(self.base));
        self.reported(item, read)
    }

    fn reported<T>(&mut self, item: &Item<'_>, read: Result<T, BadAddress>) -> Option<T> {
        read.map_err(|bad| self.error(item, bad.code, bad.message, &bad.help)).ok()
    }
}

/// What is wrong with an address, and what would be right.
struct BadAddress {
    code: &'static str,
    message: String,
    help: String,
}

impl BadAddress {
    fn new(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { code: "bad-address", message: message.into(), help: help.into() }
    }
}

/// Reads a backend's address as an operator gives it at run time, in a request or as an argument: `10.0.0.11:3000`,
/// `[fd00::11]:3000`, `app.internal:3000` or `unix:/run/app.sock`. As there is no file, a socket's path is absolute.
///
/// # Errors
/// One sentence that says what is wrong and which forms there are; at most some 80 characters of `text` are in it.
pub fn parse_backend_address(text: &str) -> Result<BackendAddress, String> {
    const FORMS: &str = "write 10.0.0.11:3000, [fd00::11]:3000, app.internal:3000 or unix:/run/app.sock";
    let shown = super::render::plain(&super::decode::cut(text));
    backend_address(text, None, &shown, FORMS).map_err(|bad| format!("{}; {}", bad.message, bad.help))
}

/// `shown` is the text as it may be printed; without a `base`, relative paths are errors.
fn backend_address(
    text: &str,
    base: Option<&Path>,
    shown: &str,
    forms: &'static str,
) -> Result<BackendAddress, BadAddress> {
    if let Some(path) = text.strip_prefix("unix:") {
        return socket_path(path, base).map(BackendAddress::Unix);
    }
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() == 0 => Err(BadAddress::new("a backend cannot have port 0", forms)),
        Ok(address) => Ok(BackendAddress::Inet(address)),
        Err(_) => host_port(text).map(BackendAddress::Host).map_err(|fault| {
            BadAddress::new(format!("`{shown}` is not an address: {}", fault.message()), fault.help(forms))
        }),
    }
}

fn socket_path(text: &str, base: Option<&Path>) -> Result<PathBuf, BadAddress> {
    if text.is_empty() || text.contains('\0') {
        return Err(BadAddress::new("a unix socket needs a path", "write one such as /run/rrlb/rrlb.sock"));
    }
    let path = match base {
        Some(base) => base.join(text),
        None if text.starts_with('/') => PathBuf::from(text),
        None => {
            let message = "a unix socket needs an absolute path here";
            return Err(BadAddress::new(message, "write one such as unix:/run/app.sock"));
        }
    };
    let path = std::path::absolute(&path).unwrap_or(path);
    let length = path.as_os_str().len();
    if length > LONGEST_SOCKET_PATH {
        let message = format!("a unix socket's path may have {LONGEST_SOCKET_PATH} bytes; this one has {length}");
        return Err(BadAddress { code: "socket-path-too-long", message, help: "use a shorter path".to_owned() });
    }
    Ok(path)
}

/// Why a text is not a host and a port.
enum Fault {
    Bracket,
    Host,
    HostMissing,
    Ip,
    Port,
    PortMissing,
    Scheme,
}

impl Fault {
    fn message(&self) -> &'static str {
        match self {
            Self::Bracket => "an IPv6 address needs brackets",
            Self::Host => "the host is not a name",
            Self::HostMissing => "the address before the port is missing",
            Self::Ip => "the host is not an IP address",
            Self::Port => "the port is not a number from 1 to 65535",
            Self::PortMissing => "the port is missing",
            Self::Scheme => "it is a URL",
        }
    }

    fn help(&self, form: &'static str) -> &'static str {
        match self {
            Self::Scheme => "write host:port only; https to the backends is `tls: {}` beside `backends`",
            _ => form,
        }
    }
}

fn host_port(text: &str) -> Result<HostPort, Fault> {
    if text.contains("://") {
        return Err(Fault::Scheme);
    }
    if text.parse::<std::net::Ipv6Addr>().is_ok() {
        return Err(Fault::Bracket);
    }
    let inside = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    if inside.parse::<IpAddr>().is_ok() {
        return Err(Fault::PortMissing);
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        let only_port = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        return Err(if only_port || text.is_empty() { Fault::HostMissing } else { Fault::PortMissing });
    };
    if host.is_empty() {
        return Err(Fault::HostMissing);
    }
    if host.contains(':') && !host.starts_with('[') {
        return Err(Fault::Bracket);
    }
    let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    let port = port.parse::<u16>().ok().filter(|port| digits && *port > 0).ok_or(Fault::Port)?;
    if host.starts_with('[') || is_numeric_host(host) {
        return Err(Fault::Ip);
    }
    let host = dns_name(host).ok_or(Fault::Host)?;
    Ok(HostPort { host, port })
}

/// A name whose last label is a number would be read as an IPv4 address by others.
fn is_numeric_host(host: &str) -> bool {
    host.rsplit('.').next().is_some_and(|label| !label.is_empty() && label.bytes().all(|b| b.is_ascii_digit()))
}

/// A host name in lower case without its trailing dot; `None` if it is not one.
pub(super) fn dns_name(text: &str) -> Option<String> {
    let name = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let valid = name.len() <= 253 && name.split('.').all(label) && !is_numeric_host(name);
    valid.then(|| name.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_are_kept_in_lower_case_without_the_dot() {
        assert_eq!(dns_name("App.Internal.").as_deref(), Some("app.internal"));
        assert_eq!(dns_name("a_b-c.example").as_deref(), Some("a_b-c.example"));
        for bad in ["", ".", "a..b", "-a", "a-", "a b", "10.0.0.300", "\u{fc}.de", &"a".repeat(64)] {
            assert_eq!(dns_name(bad), None, "{bad:?} was taken");
        }
    }

    #[test]
    fn host_and_port_need_each_other() {
        assert!(host_port("app.internal:80").is_ok());
        for bad in ["app", ":80", "app:", "app:0", "app:+1", "app:65536", "::1:80", "http://app:80", "10.0.0.300:80"] {
            assert!(host_port(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn an_address_from_a_request_says_its_forms_when_it_is_wrong() {
        let good = ["10.0.0.11:3000", "[fd00::11]:3000", "app.internal:3000", "unix:/run/app.sock"];
        for text in good {
            assert_eq!(parse_backend_address(text).map(|address| address.to_string()).as_deref(), Ok(text));
        }
        for bad in ["", "app", "10.0.0.1", "fd00::1:80", "http://app:80", "app:0", "10.0.0.1:0", "a b:1", "a\nb:1"] {
            let error = parse_backend_address(bad).expect_err(bad);
            assert!(error.contains("; write ") && !error.contains('\n'), "{bad:?}: {error}");
        }
        for bad in ["unix:", "unix:run/app.sock", "unix:/a\0b", &format!("unix:/{}", "a".repeat(107))] {
            assert!(parse_backend_address(bad).is_err(), "{bad:?} was taken");
        }
        assert!(parse_backend_address(&"a".repeat(1 << 20)).expect_err("it has no port").len() < 300);
    }
}
