//! What the process is to the system: its user, its pid file, its standard error, and the folder of its upgrade socket.

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{FromRawFd, OwnedFd, RawFd},
        unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use nix::unistd::{Group, Uid, User, fchown, getuid, initgroups, setgid, setuid};

use super::StartError;
use crate::{config::model::Process, listener::keep_descriptors, runtime::descriptors};

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

    /// Gives a file that this process has made to the account, so that it may be opened again later. Never follows a
    /// link: who can write the folder could have any file given to it.
    pub(super) fn own(&self, path: &Path) -> io::Result<()> {
        let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
        Ok(fchown(&file, Some(self.user.uid), Some(self.gid))?)
    }

    /// Gives a unix socket that this process has bound to the account. Never follows a link.
    pub(super) fn own_socket(&self, path: &Path) -> io::Result<()> {
        std::os::unix::fs::lchown(path, Some(self.user.uid.as_raw()), Some(self.gid.as_raw()))
    }

    /// The account's user id.
    pub(super) fn uid(&self) -> Uid {
        self.user.uid
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

/// A pid file. Opened while the process may still do so, written when it serves, removed at its end unless another
/// process has written it since.
#[derive(Debug)]
pub(super) struct PidFile {
    path: PathBuf,
    file: fs::File,
    made: bool,
    written: AtomicBool,
}

impl PidFile {
    /// Opens the file, and makes it where there is none.
    ///
    /// # Errors
    /// The folder is missing or not writable.
    pub(super) fn open(path: &Path, account: Option<&Account>) -> Result<Self, StartError> {
        let failed = |error| StartError::PidFile(path.to_owned(), error);
        let made = !path.exists();
        let file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path)
            .map_err(failed)?;
        if let Some(account) = account.filter(|_| made) {
            account.own(path).map_err(failed)?;
        }
        Ok(Self { path: path.to_owned(), file, made, written: AtomicBool::new(false) })
    }

    /// Writes this process's number.
    pub(super) fn write(&self) {
        let line = format!("{}\n", std::process::id());
        let written = self.file.set_len(0).and_then(|()| self.file.write_all_at(line.as_bytes(), 0));
        match written {
            Ok(()) => self.written.store(true, Ordering::Relaxed),
            Err(error) => log::error!("cannot write the pid file {}: {error}", self.path.display()),
        }
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let text = fs::read_to_string(&self.path);
        let ours = text.is_ok_and(|pid| pid.trim().parse() == Ok(std::process::id()));
        let unused = self.made && !self.written.load(Ordering::Relaxed);
        if (ours || unused)
            && let Err(error) = fs::remove_file(&self.path)
        {
            // The folder is not this user's; an empty file says at least that nobody runs.
            log::debug!("removing the pid file {}: {error}", self.path.display());
            let _ = self.file.set_len(0);
        }
    }
}

/// Names, in a successor's environment, the descriptor of the standard error that its predecessor has.
pub(crate) const LOG_FD: &str = "RRLB_LOG_FD";

/// Standard error of the process that started this one as its successor. Until this one serves its own is a pipe to that
/// process, which keeps the last lines and ends with it.
#[derive(Debug)]
pub(super) struct OwnLog(Option<fs::File>);

impl OwnLog {
    /// As the environment says. To be called once, before anything else is opened.
    pub(super) fn inherited() -> Self {
        let number = std::env::var(LOG_FD).ok().and_then(|number| number.parse::<RawFd>().ok());
        let number = number.filter(|number| {
            // SAFETY: only sets a flag, and fails where the descriptor is not open.
            *number > libc::STDERR_FILENO && unsafe { libc::fcntl(*number, libc::F_SETFD, libc::FD_CLOEXEC) } == 0
        });
        // SAFETY: it is open, and was opened for us alone by the process before.
        Self(number.map(|number| unsafe { OwnedFd::from_raw_fd(number) }.into()))
    }

    /// Whether another rrlb has started this one. It is where its predecessor is, in the background or not.
    pub(super) fn is_successor(&self) -> bool {
        self.0.is_some()
    }

    /// From now on what is logged goes there, or into `error_log` of a process in the background.
    pub(super) fn take(&self, process: &Process) {
        let Some(inherited) = &self.0 else { return };
        let own = process
            .error_log
            .as_ref()
            .filter(|_| process.daemon)
            .map(|path| fs::OpenOptions::new().create(true).append(true).open(path));
        let taken = match own {
            Some(Ok(file)) => nix::unistd::dup2_stderr(&file),
            None | Some(Err(_)) => nix::unistd::dup2_stderr(inherited),
        };
        if let Err(error) = taken {
            log::error!("the log will end with the process before this one: {error}");
        }
    }
}

/// Tells the process that waits in the foreground that this one serves. Pingora's daemon ignores the signal until it
/// waits for it, so it is told until it is gone, for some seconds at most.
pub(super) fn tell_parent(parent: i32, upgrade_sock: PathBuf) {
    const PAUSE: Duration = Duration::from_millis(20);
    tokio::spawn(async move {
        let parent = nix::unistd::Pid::from_raw(parent);
        for _ in 0..250 {
            if nix::sys::signal::kill(parent, nix::sys::signal::Signal::SIGUSR1).is_err() {
                break;
            }
            tokio::time::sleep(PAUSE).await;
        }
        for extension in ["starting", "starting.old"] {
            let _ = std::fs::remove_file(upgrade_sock.with_extension(extension));
        }
    });
}

/// Unix sockets that were bound by a start that may yet fail; their files are removed then.
#[derive(Debug, Default)]
pub(super) struct BoundFiles(Vec<PathBuf>);

impl BoundFiles {
    pub(super) fn add(&mut self, path: &Path) {
        self.0.push(path.to_owned());
    }

    /// The start has not failed.
    pub(super) fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for BoundFiles {
    fn drop(&mut self) {
        for path in &self.0 {
            let _ = fs::remove_file(path);
        }
    }
}

/// Raises the limit of open descriptors as far as it may go, checks that `needed` are there, and keeps some from clients.
///
/// # Errors
/// There are fewer.
pub(super) fn raise_descriptor_limit(needed: u64) -> Result<(), StartError> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls only read or write the structure they are given.
    let limit = unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) != 0 {
            return Ok(());
        }
        let raised = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
        if libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) == 0 { raised } else { limit }
    };
    if limit.rlim_cur < needed {
        return Err(StartError::TooFewDescriptors { needed, limit: limit.rlim_cur });
    }
    keep_descriptors(limit.rlim_cur - needed);
    descriptors::keep(limit.rlim_cur, limit.rlim_cur - needed);
    Ok(())
}

/// Where the upgrade socket of a configuration is, if the file does not say: in a folder that only this user can
/// write, under `$XDG_RUNTIME_DIR` or the temporary folder, named after the configuration file.
pub(super) fn default_upgrade_sock(config: &Path, account: Option<&Account>) -> PathBuf {
    let base = runtime_folder().unwrap_or_else(std::env::temp_dir);
    upgrade_sock_below(&base, account.map_or_else(getuid, Account::uid), config)
}

/// `$XDG_RUNTIME_DIR`.
pub(super) fn runtime_folder() -> Option<PathBuf> {
    std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute())
}

/// As [`default_upgrade_sock`], for a user below one folder.
pub(super) fn upgrade_sock_below(base: &Path, user: Uid, config: &Path) -> PathBuf {
    let folder = base.join(format!("rrlb-{user}"));
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
        if let Some(account) = account {
            account.own(folder).map_err(failed)?;
        }
    }
    let metadata = fs::metadata(folder).map_err(failed)?;
    let owner = Uid::from_raw(metadata.uid());
    if metadata.permissions().mode() & 0o022 != 0 {
        return Err(StartError::UpgradeFolderOpen(folder.to_owned()));
    }
    let user = account.map_or_else(getuid, Account::uid);
    if owner != user {
        return Err(StartError::UpgradeFolderOwner(folder.to_owned(), owner.as_raw(), user.as_raw()));
    }
    Ok(())
}
