//! The corpora and past crashes of every target, and some changes of each, without a fuzzer.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};

type Target = fn(&[u8]);

const TARGETS: [(&str, Target); 12] = [
    ("answer", super::answer),
    ("config", super::config),
    ("cookies", super::cookies),
    ("forwarded", super::forwarded),
    ("framing", super::framing),
    ("h2_answer", super::h2_answer),
    ("h2_frames", super::h2_frames),
    ("htpasswd", super::htpasswd),
    ("lane", super::lane),
    ("ocsp", super::ocsp),
    ("proxy_protocol", super::proxy_protocol),
    ("route", super::route),
];

/// Changed inputs per target: as many as fit in this time, and no more than that many. `RRLB_FUZZ_SECONDS` is for longer runs: so many
/// seconds, and as many inputs as fit; `RRLB_FUZZ_TARGET` for one target alone; `RRLB_FUZZ_SEED` for other inputs.
const PATIENCE: Duration = Duration::from_millis(1_500);
const CHANGES: usize = 3_000;

fn folder(kind: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(kind)
}

/// The files of a target, by name; none where there is no such folder.
fn inputs(kind: &str, target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let Ok(entries) = std::fs::read_dir(folder(kind).join(target)) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), std::fs::read(&path).expect("a file"))).collect()
}

#[test]
fn what_fuzzers_found_is_held_by_every_target() {
    let mut broken = Vec::new();
    for (name, target) in TARGETS {
        let corpus = inputs("corpus", name);
        assert!(!corpus.is_empty(), "fuzz/corpus/{name} is empty");
        for (path, input) in corpus.into_iter().chain(inputs("crashes", name)) {
            if catch_unwind(AssertUnwindSafe(|| target(&input))).is_err() {
                broken.push(path);
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn every_target_is_built_by_cargo_fuzz_and_every_input_belongs_to_one() {
    let manifest = std::fs::read_to_string(folder("Cargo.toml")).expect("fuzz/Cargo.toml");
    for (name, _) in TARGETS {
        let code = std::fs::read_to_string(folder("fuzz_targets").join(format!("{name}.rs"))).expect("a target");
        assert!(code.contains(&format!("rrlb::fuzzing::{name}")), "fuzz_targets/{name}.rs calls something else");
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name} is not in fuzz/Cargo.toml");
    }
    for kind in ["corpus", "crashes"] {
        for entry in std::fs::read_dir(folder(kind)).expect("a folder") {
            let name = entry.expect("an entry").file_name();
            assert!(
                TARGETS.iter().any(|(target, _)| name == *target),
                "fuzz/{kind}/{} is of no target",
                name.display()
            );
        }
    }
}

#[test]
fn what_is_near_to_known_inputs_is_held_too() {
    let only = std::env::var("RRLB_FUZZ_TARGET").ok();
    std::thread::scope(|scope| {
        let targets = TARGETS.into_iter().filter(|(name, _)| only.as_deref().is_none_or(|only| only == *name));
        let tasks: Vec<_> = targets.map(|(name, target)| (name, scope.spawn(move || changes(name, target)))).collect();
        for (name, task) in tasks {
            assert!(task.join().is_ok(), "{name}: see the input above");
        }
    });
}

/// Runs a target with changed inputs of its corpus, always the same ones in the same order where nothing else is said.
fn changes(name: &str, target: Target) {
    let corpus = inputs("corpus", name);
    let number = |name| std::env::var(name).ok().and_then(|number| number.parse().ok());
    let mut random = SmallRng::seed_from_u64(number("RRLB_FUZZ_SEED").unwrap_or(9));
    let began = Instant::now();
    let seconds = number("RRLB_FUZZ_SECONDS");
    let (patience, most) = seconds.map_or((PATIENCE, CHANGES), |seconds| (Duration::from_secs(seconds), usize::MAX));
    let mut played = 0;
    while played < most && began.elapsed() <= patience {
        played += 1;
        let mut input = corpus[random.random_range(0..corpus.len())].1.clone();
        for _ in 0..random.random_range(1..5) {
            change(&mut input, &corpus, &mut random);
        }
        if catch_unwind(AssertUnwindSafe(|| target(&input))).is_err() {
            panic!("{name} fails with {:?}", input.escape_ascii().to_string());
        }
    }
    println!("{name}: {played} inputs in {:?}", began.elapsed());
}

fn change(input: &mut Vec<u8>, corpus: &[(PathBuf, Vec<u8>)], random: &mut SmallRng) {
    const TELLING: &[u8] = b"\r\n\0 \t:;,=%/\\.\"'#{}[]*&!|-+09aF\x7f\x80\xff";
    let at = random.random_range(0..=input.len());
    let end = random.random_range(at..=input.len().min(at + 16));
    match random.random_range(0..6) {
        0 if at < input.len() => input[at] ^= 1 << random.random_range(0..8),
        1 => drop(input.drain(at..end)),
        2 => {
            let part = input[at..end].to_vec();
            input.splice(at..at, part);
        }
        3 => input.truncate(at),
        4 => {
            let other = &corpus[random.random_range(0..corpus.len())].1;
            let from = random.random_range(0..=other.len());
            let to = random.random_range(from..=other.len().min(from + 64));
            input.splice(at..end, other[from..to].iter().copied());
        }
        _ => input.insert(at, TELLING[random.random_range(0..TELLING.len())]),
    }
}
