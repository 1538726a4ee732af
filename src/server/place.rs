//! Where a running process is found by those who did not start it: they may be another user, with another environment.

use std::path::{Path, PathBuf};

use nix::unistd::{Uid, User, getuid};

use super::process::{runtime_folder, upgrade_sock_below};

/// A place where the admin API may listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AdminSocket {
    /// The socket.
    pub(crate) path: PathBuf,
    /// Whose socket it may be; `None` where somebody named it. Folders below `/tmp` can be made by anybody.
    pub(crate) owners: Option<Vec<u32>>,
}

/// Where the admin socket of a configuration may be if the file does not name it, the likeliest first. `upgrade_sock` and
/// `user` are what the file says of them.
pub(crate) fn admin_sockets(config: &Path, upgrade_sock: Option<&Path>, user: Option<&str>) -> Vec<AdminSocket> {
    if let Some(socket) = upgrade_sock {
        return vec![AdminSocket { path: default_admin_sock(Some(socket), socket), owners: None }];
    }
    let account = user.and_then(|name| User::from_name(name).ok().flatten()).map(|user| user.uid);
    let mut users: Vec<Uid> = account.into_iter().chain([getuid()]).collect();
    users.dedup();
    let owners: Vec<u32> = users.iter().map(|user| user.as_raw()).chain([0]).collect();
    let mut sockets: Vec<AdminSocket> = Vec::new();
    for base in runtime_folder().into_iter().chain([std::env::temp_dir()]) {
        for user in &users {
            let path = default_admin_sock(None, &upgrade_sock_below(&base, *user, config));
            if !sockets.iter().any(|socket| socket.path == path) {
                sockets.push(AdminSocket { path, owners: Some(owners.clone()) });
            }
        }
    }
    sockets
}

/// Where the admin socket is in which no configuration is named: the only one in the default folders. Of several nobody
/// can say which is meant.
pub(crate) fn only_admin_socket() -> Vec<AdminSocket> {
    let folders = runtime_folder().into_iter().chain([std::env::temp_dir()]);
    let owners: Vec<u32> = vec![getuid().as_raw(), 0];
    let mut found: Vec<AdminSocket> = Vec::new();
    for folder in
        folders.flat_map(|base| owners.iter().map(move |user| base.join(format!("rrlb-{user}"))).collect::<Vec<_>>())
    {
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        let sockets = entries.map(|entry| entry.path()).filter(|path| path.to_string_lossy().ends_with(ADMIN));
        for path in sockets.filter(|path| std::os::unix::net::UnixStream::connect(path).is_ok()) {
            if !found.iter().any(|socket| socket.path == path) {
                found.push(AdminSocket { path, owners: Some(owners.clone()) });
            }
        }
    }
    if found.len() == 1 { found } else { Vec::new() }
}

/// How default admin sockets end.
const ADMIN: &str = ".admin.sock";

/// The default admin socket: `admin.sock` beside the upgrade socket where the file names that; else it has the default
/// upgrade socket's name, which is of the configuration, so that two instances of one user do not meet.
pub(super) fn default_admin_sock(named: Option<&Path>, default_upgrade_sock: &Path) -> PathBuf {
    match named {
        Some(named) => named.with_file_name("admin.sock"),
        None => default_upgrade_sock.with_extension(ADMIN.trim_start_matches('.')),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_admin_socket_is_beside_the_upgrade_socket() {
        let sockets = admin_sockets(Path::new("/etc/rrlb.yaml"), Some(Path::new("/run/rrlb/upgrade.sock")), None);
        assert_eq!(sockets, [AdminSocket { path: "/run/rrlb/admin.sock".into(), owners: None }]);
    }

    #[test]
    fn the_default_place_is_looked_for_at_the_files_user_and_at_ones_own() {
        let own = getuid();
        let sockets = admin_sockets(Path::new("/etc/rrlb.yaml"), None, Some("root"));
        for user in [Uid::from_raw(0), own] {
            let folder = std::env::temp_dir().join(format!("rrlb-{user}"));
            let found = sockets.iter().find(|socket| socket.path.starts_with(&folder)).expect("the place");
            assert!(found.owners.as_ref().expect("owners").contains(&own.as_raw()));
        }
    }
}
