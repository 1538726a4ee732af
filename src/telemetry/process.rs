//! What the kernel says of this process, read at each scrape from /proc/self. Where /proc is not mounted the numbers
//! are 0.

use std::fs;

/// Numbers of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct ProcessNumbers {
    pub(crate) cpu_seconds: f64,
    pub(crate) open_fds: u64,
    pub(crate) max_fds: u64,
    pub(crate) resident_bytes: u64,
    pub(crate) threads: u64,
}

impl ProcessNumbers {
    /// Reads four small files; a few microseconds, and some for each open descriptor.
    pub(crate) fn read() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        Self {
            cpu_seconds: cpu_seconds(&stat).unwrap_or_default(),
            // One is the directory being read.
            open_fds: fs::read_dir("/proc/self/fd").map_or(0, |entries| (entries.count() as u64).saturating_sub(1)),
            max_fds: number_after(&limits, "Max open files"),
            resident_bytes: number_after(&status, "VmRSS:") * 1024,
            threads: number_after(&status, "Threads:"),
        }
    }
}

/// The first number on the line that begins with `label`.
fn number_after(text: &str, label: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(label));
    line.and_then(|line| line.split_whitespace().next()).and_then(|word| word.parse().ok()).unwrap_or_default()
}

/// User and system time: fields 14 and 15, counted from the end of the name, which may hold blanks.
fn cpu_seconds(stat: &str) -> Option<f64> {
    // USER_HZ, part of the kernel's interface on every architecture rrlb is built for.
    const TICKS_PER_SECOND: f64 = 100.0;
    let (_, fields) = stat.rsplit_once(')')?;
    let mut ticks = fields.split_whitespace().skip(11).map(str::parse::<u32>);
    let (user, system) = (ticks.next()?.ok()?, ticks.next()?.ok()?);
    Some((f64::from(user) + f64::from(system)) / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_threads_memory_and_descriptors() {
        let numbers = ProcessNumbers::read();
        assert!(numbers.threads >= 1 && numbers.open_fds >= 3 && numbers.max_fds >= numbers.open_fds, "{numbers:?}");
        assert!(numbers.resident_bytes > 100_000, "{numbers:?}");
    }

    #[test]
    fn a_name_with_blanks_and_brackets_hides_no_time() {
        assert_eq!(cpu_seconds("1 (a) b) S 1 1 1 0 -1 4194304 1 2 3 4 150 50 0 0 20"), Some(2.0));
        assert_eq!(cpu_seconds(""), None);
    }
}
