//! The state file under everything that can befall it: no space, no writing, an upgrade or `kill -9` in the middle of changes.
//! What was answered with success is there afterwards, and what was not has left nothing behind.

use std::{
    collections::BTreeMap,
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use serde_json::{Value, json};

use crate::support::{
    admin::Api,
    proxy::{Config, Proxy},
    run, wait_until,
};

/// `app` with backends `a` and `b`, which nobody asks, and the state file in a folder of its own.
fn config() -> Config {
    let config = Config::new(
        "admin: { socket: <dir>/admin.sock }\nstate_file: <dir>/state/state.json\nupstreams:\n  app:\n    backends:\n\
         \x20     - { id: a, address: \"127.0.0.1:1\" }\n      - { id: b, address: \"127.0.0.1:2\" }\n",
    );
    std::fs::create_dir(config.dir().join("state")).expect("a folder");
    config
}

/// Everything that a refused change must leave as it was.
async fn all(api: &Api, state: &Path) -> (Value, Value, Vec<u8>, Vec<String>) {
    let names = std::fs::read_dir(state).expect("a folder").flatten();
    let mut names: Vec<String> = names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.retain(|name| name != "filler");
    names.sort();
    let file = std::fs::read(state.join("state.json")).expect("a state file");
    (api.get("/v1/upstreams/app").await, api.get("/v1/state").await, file, names)
}

/// Every kind of change is refused with this status and kind of problem, and has changed nothing.
async fn refuses_everything(api: &Api, state: &Path, status: u16, kind: &str) {
    let before = all(api, state).await;
    assert_eq!(before.3, ["state.json"]);
    for (method, target, body) in [
        ("PATCH", "/v1/upstreams/app/backends/b", json!({ "weight": 9 })),
        ("PUT", "/v1/upstreams/app/backends/c", json!({ "address": "127.0.0.1:3" })),
        ("PUT", "/v1/upstreams/app/backends/l?ttl=60s", json!({ "address": "127.0.0.1:4" })),
        ("PUT", "/v1/upstreams/app/backends", json!([{ "id": "d", "address": "127.0.0.1:5" }])),
        ("DELETE", "/v1/upstreams/app/backends/b", Value::Null),
        ("DELETE", "/v1/upstreams/app/backends/a/override", Value::Null),
    ] {
        let (answered, problem) = api.ask(method, target, body).await;
        assert_eq!(answered, status, "{method} {target}: {problem}");
        assert_eq!(problem["type"], json!(format!("about:blank#{kind}")), "{problem}");
        assert!(problem["detail"].as_str().is_some_and(|text| text.contains("nothing was changed")), "{problem}");
        assert!(problem["detail"].as_str().is_some_and(|text| text.contains("state.json")), "{problem}");
        assert_eq!(all(api, state).await, before, "{method} {target} left something behind");
    }
    api.change("PUT", "/v1/upstreams/app/backends/t?persist=false", json!({ "address": "127.0.0.1:6" })).await;
    api.change("DELETE", "/v1/upstreams/app/backends/t?drain=0s", Value::Null).await;
    assert_eq!(all(api, state).await, before, "what is not to be kept needs no disk");
}

/// A system call of the process that is answered with an error by the kernel, whoever runs it and wherever.
struct Refused {
    call: libc::c_long,
    /// Only with this bit in its third argument; 0: always.
    flag: u32,
    errno: i32,
}

impl Refused {
    /// As a filter of system calls (seccomp), which outlives `exec`.
    fn install(&self) -> io::Result<()> {
        const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
        const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
        const SET: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
        const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
        // Of `seccomp_data`: the number, and the lower half of the third argument.
        let third = 16 + 2 * 8 + if cfg!(target_endian = "big") { 4 } else { 0 };
        let call = u32::try_from(self.call).expect("a number of a call");
        let errno = u32::try_from(self.errno).expect("an error's number");
        let line = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
        let mut lines = [
            line(LOAD, 0, 0, 0),
            line(EQUAL, 0, 3, call),
            line(LOAD, 0, 0, third),
            line(SET, 0, 1, self.flag),
            line(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | errno),
            line(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
        ];
        if self.flag == 0 {
            lines[3] = line(SET, 0, 0, 0);
        }
        let filter = libc::sock_fprog { len: 6, filter: lines.as_mut_ptr() };
        // SAFETY: plain system calls; the filter outlives them.
        let done = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) == 0
        };
        if done { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Starts the proxy so; nothing where the system has no such filters.
    async fn start(self, config: Config) -> Option<Proxy> {
        let mut probe = Command::new("true");
        let install = move || self.install();
        let install: Arc<dyn Fn() -> io::Result<()> + Send + Sync> = Arc::new(install);
        let first = install.clone();
        // SAFETY: only system calls between fork and exec.
        unsafe { probe.pre_exec(move || first()) };
        if let Err(error) = probe.status() {
            eprintln!("SKIPPED: no filter of system calls can be set here ({error})");
            return None;
        }
        let mut proxy = config.spawn_with(&[], |command| {
            // SAFETY: as above.
            unsafe { command.pre_exec(move || install()) };
        });
        proxy.ready().await;
        Some(proxy)
    }
}

/// As root of a user namespace of one's own, with the folder of the state file on a small file system of its own.
struct Mounted {
    proxy: Proxy,
    /// The folder, as it is seen from outside.
    state: PathBuf,
}

impl Mounted {
    /// Nothing where no such namespace can be made.
    async fn start(config: Config) -> Option<Self> {
        let state = config.dir().join("state");
        let mount = format!("mount -t tmpfs -o size=64k none '{}'", state.display());
        let possible = Command::new("unshare").args(["-rm", "sh", "-c", &mount]).output();
        if !possible.as_ref().is_ok_and(|done| done.status.success()) {
            eprintln!("SKIPPED: no file system can be mounted in a namespace of its own here ({possible:?})");
            return None;
        }
        let script = config.dir().join("mounted");
        let binary = run::binary();
        let text = format!(
            "#!/bin/sh\nexec unshare -rm sh -c \"{mount}\"' && exec \"$0\" \"$@\"' '{}' \"$@\"\n",
            binary.display()
        );
        // Written by another process: one that this process has open for writing could not be executed.
        let write = ["-c", "printf %s \"$1\" > \"$2\" && chmod 755 \"$2\"", "sh", &text];
        let written = Command::new("sh").args(write).arg(&script).status().expect("a shell");
        assert!(written.success(), "{written}");
        let mut proxy = config.spawn_binary(&script, &[], |_| {});
        proxy.ready().await;
        let state = PathBuf::from(format!("/proc/{}/root{}", proxy.pid(), state.display()));
        Some(Self { proxy, state })
    }

    /// Mounts it again, inside.
    fn remount(&self, how: &str) {
        let folder = self.proxy.config.dir().join("state");
        let pid = self.proxy.pid().to_string();
        let enter = ["-U", "-m", "--preserve-credentials", "-t", &pid, "mount", "-o", how];
        let done = Command::new("nsenter").args(enter).arg(folder).output().expect("nsenter");
        assert!(done.status.success(), "{done:?}");
    }
}

const NO_SPACE: (u16, &str) = (507, "no-space");
const NOT_KEPT: (u16, &str) = (503, "not-kept");

/// A proxy whose kernel refuses a call goes on from what another has kept before; what it could not keep is in no file.
async fn refused_by_the_kernel(refused: Refused, (status, kind): (u16, &str)) -> bool {
    let config = config();
    let mut before = config.clone().start().await;
    let api = Api::of(&before);
    api.change("PATCH", "/v1/upstreams/app/backends/a", json!({ "weight": 5 })).await;
    before.signal(libc::SIGTERM);
    before.ended().await;
    let Some(mut proxy) = refused.start(config.clone()).await else { return false };
    refuses_everything(&api, &config.dir().join("state"), status, kind).await;
    proxy.signal(libc::SIGKILL);
    proxy.ended().await;
    let _after = config.start().await;
    assert_eq!(api.backends().await, ["a:up", "b:up"]);
    assert_eq!(api.get("/v1/upstreams/app/backends/a").await["weight"], 5);
    true
}

/// The disk fills up, and has room again; it becomes read-only, and writable again.
async fn refused_by_the_disk() -> bool {
    let Some(mounted) = Mounted::start(config()).await else { return false };
    let api = Api::of(&mounted.proxy);
    api.change("PATCH", "/v1/upstreams/app/backends/a", json!({ "weight": 5 })).await;
    let filler = mounted.state.join("filler");
    let full = std::fs::write(&filler, vec![b'x'; 1 << 20]).expect_err("it has 64 KiB");
    assert_eq!(full.raw_os_error(), Some(libc::ENOSPC));
    refuses_everything(&api, &mounted.state, NO_SPACE.0, NO_SPACE.1).await;
    std::fs::remove_file(&filler).expect("removes");
    api.change("PATCH", "/v1/upstreams/app/backends/b", json!({ "weight": 4 })).await;
    mounted.remount("remount,bind,ro");
    refuses_everything(&api, &mounted.state, NOT_KEPT.0, NOT_KEPT.1).await;
    mounted.remount("remount,bind,rw");
    api.change("PATCH", "/v1/upstreams/app/backends/b", json!({ "weight": 6 })).await;
    let kept: Value = serde_json::from_str(&run::read(&mounted.state.join("state.json"))).expect("JSON");
    assert_eq!(kept["upstreams"]["app"]["b"]["weight"], 6);
    assert_eq!(kept["upstreams"]["app"]["a"]["weight"], 5);
    true
}

/// By the kernel's filter, which every user can set, and by a real disk where one can be mounted. One of them must be.
#[tokio::test]
async fn what_cannot_be_written_is_refused_and_nothing_is_half_done() {
    let filtered = [
        (Refused { call: libc::SYS_fsync, flag: 0, errno: libc::ENOSPC }, NO_SPACE),
        (Refused { call: libc::SYS_fsync, flag: 0, errno: libc::EDQUOT }, NO_SPACE),
        (Refused { call: libc::SYS_fsync, flag: 0, errno: libc::EIO }, NOT_KEPT),
        // The journal's temporary file must be new; nothing else that is written is.
        (Refused { call: libc::SYS_openat, flag: libc::O_EXCL as u32, errno: libc::EROFS }, NOT_KEPT),
        (Refused { call: libc::SYS_openat, flag: libc::O_EXCL as u32, errno: libc::EACCES }, NOT_KEPT),
    ];
    let mut shown = 0;
    for (refused, answer) in filtered {
        shown += usize::from(refused_by_the_kernel(refused, answer).await);
    }
    let by_disk = refused_by_the_disk().await;
    assert!(shown == 5 || by_disk, "neither way to refuse a write was possible on this machine; nothing was tested");
}

/// One who changes without a pause, and remembers what was answered. Its backends are its own.
struct Writer {
    api: Api,
    /// Names of its backends begin so.
    name: &'static str,
    port: u16,
    turn: u16,
    /// By backend: the weight that was answered with success last.
    kept: BTreeMap<String, u16>,
    /// What was asked last, where no answer came: it may be there or not.
    asked: Option<(String, u16)>,
}

impl Writer {
    const BACKENDS: u16 = 6;

    fn new(api: &Api, name: &'static str, port: u16) -> Self {
        Self { api: api.clone(), name, port, turn: 0, kept: BTreeMap::new(), asked: None }
    }

    /// A change with a value that was never before; the same again where the last was not answered.
    async fn change(&mut self) -> io::Result<u16> {
        let (id, weight) = self.asked.clone().unwrap_or_else(|| {
            self.turn += 1;
            (format!("{}{}", self.name, self.turn % Self::BACKENDS), 1 + self.turn % 1000)
        });
        let target = format!("/v1/upstreams/app/backends/{id}");
        self.asked = Some((id.clone(), weight));
        let status = match self.kept.contains_key(&id) {
            true => self.api.try_ask("PATCH", &target, json!({ "weight": weight })).await?.0,
            false => {
                let address = format!("127.0.0.1:{}", self.port + self.turn % Self::BACKENDS);
                self.api.try_ask("PUT", &target, json!({ "address": address, "weight": weight })).await?.0
            }
        };
        if (200..300).contains(&status) {
            self.asked = None;
            self.kept.insert(id, weight);
        }
        Ok(status)
    }

    /// Everything that was answered is there, and nothing else but what was asked last.
    async fn finds_it_all(&mut self, when: &str) {
        let answer = self.api.get("/v1/upstreams/app").await;
        let backends = answer["backends"].as_array().expect("a list").iter();
        let mine = backends.filter(|backend| backend["id"].as_str().is_some_and(|id| id.starts_with(self.name)));
        let read =
            |backend: &Value| (backend["id"].as_str().unwrap_or_default().to_owned(), backend["weight"].as_u64());
        let found: BTreeMap<String, Option<u64>> = mine.map(read).collect();
        let mut expected: BTreeMap<String, Option<u64>> =
            self.kept.iter().map(|(id, weight)| (id.clone(), Some(u64::from(*weight)))).collect();
        if let Some((id, weight)) = self.asked.take()
            && found.get(&id) == Some(&Some(u64::from(weight)))
        {
            expected.insert(id.clone(), Some(u64::from(weight)));
            self.kept.insert(id, weight);
        }
        assert_eq!(found, expected, "{when}, after {} changes of {}", self.turn, self.name);
    }
}

/// Only these, from who is told to ask again: nobody listens at this moment, or the process is being replaced.
fn may_ask_again(answer: &io::Result<u16>) -> bool {
    match answer {
        Ok(status) => matches!(status, 200 | 201 | 503),
        Err(error) => matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound),
    }
}

/// A process that was started by the one under test.
struct Grandchild(i32);

impl Drop for Grandchild {
    fn drop(&mut self) {
        // SAFETY: a plain system call on a process that this test has started.
        unsafe { libc::kill(self.0, libc::SIGKILL) };
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_answered_change_is_lost_in_an_upgrade() {
    let config = config();
    let mut proxy = config.clone().start().await;
    let api = Api::of(&proxy);
    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let write = |name, port| {
        let (mut writer, stop, answered) = (Writer::new(&api, name, port), stop.clone(), answered.clone());
        tokio::spawn(async move {
            while !stop.load(Ordering::SeqCst) || writer.asked.is_some() {
                let answer = writer.change().await;
                assert!(may_ask_again(&answer), "{answer:?}");
                answered.fetch_add(1, Ordering::SeqCst);
            }
            writer
        })
    };
    let writers = [write("x", 2000), write("y", 3000)];
    let more = async || {
        let from = answered.load(Ordering::SeqCst);
        let ended = || writers.iter().any(tokio::task::JoinHandle::is_finished);
        wait_until("changes", || ended() || answered.load(Ordering::SeqCst) > from + 40).await;
    };
    for _ in 0..3 {
        more().await;
        proxy = proxy.upgrade().await;
    }
    more().await;
    let socket = config.dir().join("admin.sock");
    run::rrlb(&["--socket", socket.to_str().expect("text"), "upgrade"]).await.ended_with(0);
    assert!(proxy.ended().await.success(), "{}", proxy.stderr());
    let next = api.get("/v1/status").await["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).expect("a process");
    let next = Grandchild(next);
    more().await;
    stop.store(true, Ordering::SeqCst);
    let mut done = Vec::new();
    for writer in writers {
        let mut writer = writer.await.expect("no change failed in another way");
        writer.finds_it_all("after four upgrades").await;
        done.push(writer);
    }
    // It is all on the disk as well.
    drop(next);
    wait_until("the end of the successor", || std::os::unix::net::UnixStream::connect(&socket).is_err()).await;
    let _proxy = config.start().await;
    for mut writer in done {
        writer.finds_it_all("after a kill").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answered_change_survives_a_kill_in_the_middle_of_others() {
    let config = config();
    let mut proxy = config.clone().start().await;
    let api = Api::of(&proxy);
    let mut writers = vec![Writer::new(&api, "x", 2000), Writer::new(&api, "y", 3000)];
    for round in 0..5usize {
        let answered = Arc::new(AtomicUsize::new(0));
        let write = |mut writer: Writer| {
            let answered = answered.clone();
            tokio::spawn(async move {
                // Until nobody is there any more.
                while let Ok(status) = writer.change().await {
                    assert!(matches!(status, 200 | 201), "{status}");
                    answered.fetch_add(1, Ordering::SeqCst);
                }
                writer
            })
        };
        let under_way: Vec<_> = writers.drain(..).map(write).collect();
        // Another place among the steps of a write each time.
        wait_until("changes", || answered.load(Ordering::SeqCst) >= 7 + 13 * round).await;
        proxy.signal(libc::SIGKILL);
        proxy.ended().await;
        for writer in under_way {
            writers.push(writer.await.expect("it was refused nothing"));
        }
        proxy = config.clone().start().await;
        for writer in &mut writers {
            writer.finds_it_all(&format!("after kill {round}")).await;
        }
        let aside = std::fs::read_dir(config.dir().join("state")).expect("a folder").flatten();
        let aside: Vec<_> =
            aside.map(|entry| entry.file_name()).filter(|name| name.to_string_lossy().contains("damaged")).collect();
        assert!(aside.is_empty(), "{aside:?}");
    }
}
