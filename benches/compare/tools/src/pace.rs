//! The open loop: requests become due at a fixed rate whether or not earlier ones were answered, and each is counted from
//! the moment it was due. By a timerfd, since tokio's own timer is exact to a millisecond only.

use std::{
    cell::Cell,
    os::fd::{FromRawFd, OwnedFd},
    rc::Rc,
    time::Duration,
};

use tokio::{io::unix::AsyncFd, sync::Semaphore, time::Instant};

/// Hands out requests that are due, in order.
pub(crate) struct Pace {
    began: Instant,
    interval: Duration,
    due: Semaphore,
    next: Cell<u32>,
    /// How many there will be.
    pub(crate) total: u32,
}

impl Pace {
    /// `rate` requests a second for `seconds`, from now.
    pub(crate) fn start(rate: f64, seconds: f64) -> std::io::Result<Rc<Self>> {
        let interval = Duration::from_secs_f64(1.0 / rate);
        // SAFETY: the descriptor is owned by what is registered, so it stays the same until that is dropped.
        let timer = unsafe { AsyncFd::register(timer(interval)?) }?;
        let pace = Rc::new(Self {
            began: Instant::now(),
            interval,
            due: Semaphore::new(0),
            next: Cell::new(0),
            total: (rate * seconds) as u32,
        });
        let handing = pace.clone();
        tokio::task::spawn_local(async move {
            let mut handed = 0;
            while handed < handing.total {
                let Ok(mut ready) = timer.readable().await else { return };
                let mut count = 0_u64;
                let fd = std::os::fd::AsRawFd::as_raw_fd(timer.get_ref());
                // SAFETY: the kernel writes the eight bytes of `count`, or nothing.
                unsafe { libc::read(fd, (&raw mut count).cast(), 8) };
                ready.clear_ready();
                let count = (count as u32).min(handing.total - handed);
                handed += count;
                handing.due.add_permits(count as usize);
            }
        });
        Ok(pace)
    }

    /// Waits for the next request and says when it was due; none when all have been handed out.
    pub(crate) async fn next(&self) -> Option<Instant> {
        if self.next.get() >= self.total {
            return std::future::pending().await; // the run ends by count or by its deadline
        }
        self.due.acquire().await.ok()?.forget();
        let number = self.next.get();
        self.next.set(number + 1);
        Some(self.due_at(number))
    }

    /// When request `number` is due, the first after one interval.
    pub(crate) fn due_at(&self, number: u32) -> Instant {
        self.began + self.interval * (number + 1)
    }
}

fn timer(interval: Duration) -> std::io::Result<OwnedFd> {
    let time = libc::timespec { tv_sec: interval.as_secs() as _, tv_nsec: interval.subsec_nanos() as _ };
    let setting = libc::itimerspec { it_interval: time, it_value: time };
    // SAFETY: `setting` lives through the call, and the descriptor is owned by what is returned.
    unsafe {
        let fd = libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_NONBLOCK | libc::TFD_CLOEXEC);
        if fd < 0 || libc::timerfd_settime(fd, 0, &setting, std::ptr::null_mut()) != 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(fd))
    }
}
