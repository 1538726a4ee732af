//! What the process is to the system: its user, its pid file, and the folder of its upgrade socket.

use std::{
    ffi::CString,
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use nix::unistd::{Group, Uid, User, chown, getuid, initgroups, setgid, setuid};

use super::StartError;
use crate::config::model::Process;

/// Accounts that the process changes to.
#[derive(Clone, Debug)]
pub(super) struct Account {
    user: User,
    gid: nix::unistd::Gid,
}

impl Account {
    /// The account that `user` and `group` name; `None` where none is asked for.
    ///
    /// # Errors
    /// There is no such user or group, or only root may change to it.
    pub(super) fn of(process: &Process) -> Result<Option<Self>, StartError> {
        let Some(name) = &process.user else {
            return match &process.group {
                Some(group) => Err(StartError::GroupWithoutUser(group.clone())),
                None => Ok(None),
            };
        };
        let user = User::from_name(name).ok().flatten().ok_or_else(|| StartError::NoSuchUser(name.clone()))?;
        let gid = match &process.group {
            Some(group) => {
                Group::from_name(group).ok().flatten().ok_or_else(|| StartError::NoSuchGroup(group.clone()))?.gid
            }
            None => user.gid,
        };
        if user.uid == getuid() {
            return Ok(None);
        }
        if !getuid().is_root() {
            return Err(StartError::NotRoot(name.clone()));
        }
        Ok(Some(Self { user, gid }))
    }

    /// Gives a file to the account, so that it may be opened again later.
    pub(super) fn own(&self, path: &Path) -> io::Result<()> {
        Ok(chown(path, Some(self.user.uid), Some(self.gid))?)
    }

    /// Becomes the account, for good.
    ///
    /// # Errors
    /// The system does not allow it.
    pub(super) fn assume(&self) -> Result<(), StartError> {
        let become_it = || -> nix::Result<()> {
            let name = CString::new(self.user.name.as_str()).map_err(|_| nix::Error::EINVAL)?;
            initgroups(&name, self.gid)?;
            setgid(self.gid)?;
            setuid(self.user.uid)
        };
        become_it().map_err(|error| StartError::ChangeUser(self.user.name.clone(), error.into()))
    }
}

/// A pid file that this process has written, removed at its end unless another has written it since.
#[derive(Debug)]
pub(super) struct PidFile(PathBuf);

impl PidFile {
    /// Writes the file anew, in one step.
    ///
    /// # Errors
    /// The folder is missing or not writable.
    pub(super) fn write(path: &Path) -> Result<Self, StartError> {
        let failed = |error| StartError::PidFile(path.to_owned(), error);
        let fresh = path.with_extension(format!("{}.tmp", std::process::id()));
        fs::write(&fresh, format!("{}\n", std::process::id())).map_err(failed)?;
        fs::rename(&fresh, path).map_err(failed)?;
        Ok(Self(path.to_owned()))
    }

    /// The file that Pingora has written while going to the background.
    pub(super) fn adopt(path: &Path) -> Self {
        Self(path.to_owned())
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let mut old = self.0.clone().into_os_string();
        old.push(".old"); // where Pingora's daemon moves the file of the process before it
        for path in [self.0.clone(), old.into()] {
            let ours = fs::read_to_string(&path).is_ok_and(|pid| pid.trim().parse() == Ok(std::process::id()));
            if ours && let Err(error) = fs::remove_file(&path) {
                log::warn!("cannot remove the pid file {}: {error}", path.display());
            }
        }
    }
}

/// Where the upgrade socket of a configuration is, if the file does not say: in a folder that only this user can
/// write, under `$XDG_RUNTIME_DIR` or the temporary folder, named after the configuration file.
pub(super) fn default_upgrade_sock(config: &Path) -> PathBuf {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    let folder = runtime.unwrap_or_else(std::env::temp_dir).join(format!("rrlb-{}", getuid()));
    let full = fs::canonicalize(config).unwrap_or_else(|_| config.to_owned());
    let name: String = full
        .to_string_lossy()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '.' || c == '-' { c } else { '_' })
        .collect();
    let hash = crate::policy::balance::hash_bytes(full.to_string_lossy().as_bytes());
    let tail: String = name.chars().rev().take(40).collect::<Vec<_>>().into_iter().rev().collect();
    folder.join(format!("{tail}-{hash:016x}.sock"))
}

/// Makes the folder of the upgrade socket where it is missing, and checks that nobody else can write there: who can
/// put a socket in its place gets the listeners.
///
/// # Errors
/// It cannot be made, or others can write it.
pub(super) fn private_folder(socket: &Path, account: Option<&Account>) -> Result<(), StartError> {
    let folder = socket.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let failed = |error| StartError::UpgradeFolder(folder.to_owned(), error);
    if !folder.exists() {
        fs::DirBuilder::new().mode(0o700).create(folder).map_err(failed)?;
    }
    let metadata = fs::metadata(folder).map_err(failed)?;
    let owner = Uid::from_raw(metadata.uid());
    let trusted = |uid: Uid| uid == getuid() || uid.is_root() || account.is_some_and(|account| account.user.uid == uid);
    if !trusted(owner) || metadata.permissions().mode() & 0o022 != 0 {
        return Err(StartError::UpgradeFolderOpen(folder.to_owned()));
    }
    if let Some(account) = account
        && owner == getuid()
    {
        account.own(folder).map_err(failed)?;
    }
    Ok(())
}
