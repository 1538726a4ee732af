//! From probe results to a verdict: rise, fall and the state before the first result. Who probes, and when, is not
//! decided here.

/// When probe results change the verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// Successes in a row that bring a backend up; default 2, 1 or more.
    pub rise: u32,
    /// Failures in a row that take a backend down; default 3, 1 or more.
    pub fall: u32,
    /// What a backend counts as until its first probe has finished; default down. The first probe's result
    /// decides at once, without waiting for `rise` or `fall`.
    pub initial: InitialHealth,
}

/// What a backend counts as until its first probe has finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InitialHealth {
    /// No traffic yet.
    Down,
    /// Traffic at once.
    Up,
}

/// What probes say about a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// `fall` probes in a row failed, or the first one.
    Down,
    /// No probe has finished yet, or nothing is probed.
    Unknown,
    /// `rise` probes in a row succeeded, or the first one.
    Up,
}

impl Health {
    /// Whether the backend may get traffic.
    pub fn usable(self, initial: InitialHealth) -> bool {
        match self {
            Self::Down => false,
            Self::Unknown => initial == InitialHealth::Up,
            Self::Up => true,
        }
    }

    /// The word in logs and answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Unknown => "unknown",
            Self::Up => "up",
        }
    }
}

/// A change of the verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flip {
    /// The backend is down from now on.
    Down,
    /// The backend is up from now on.
    Up,
}

/// The verdict on one backend and what it takes to change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthState {
    thresholds: Thresholds,
    health: Health,
    /// Results in a row against the verdict.
    against: u32,
}

impl HealthState {
    /// Nothing is known yet.
    pub fn new(thresholds: Thresholds) -> Self {
        Self::resume(thresholds, Health::Unknown)
    }

    /// Goes on from an earlier verdict, as after a reload.
    pub fn resume(thresholds: Thresholds, health: Health) -> Self {
        Self { thresholds, health, against: 0 }
    }

    /// Goes on in the middle of a row of this many results against the verdict, as after an upgrade.
    pub fn having(self, against: u32) -> Self {
        Self { against, ..self }
    }

    /// Results in a row against the verdict.
    pub fn against(&self) -> u32 {
        self.against
    }

    /// The verdict now.
    pub fn health(&self) -> Health {
        self.health
    }

    /// Whether the backend may get traffic now.
    pub fn usable(&self) -> bool {
        self.health.usable(self.thresholds.initial)
    }

    /// Takes in one probe's result; `Some` where it changes the verdict. The first result always does.
    pub fn observe(&mut self, success: bool) -> Option<Flip> {
        let needed = match (self.health, success) {
            (Health::Down, false) | (Health::Up, true) => {
                self.against = 0;
                return None;
            }
            (Health::Down, true) => self.thresholds.rise,
            (Health::Unknown, _) => 1,
            (Health::Up, false) => self.thresholds.fall,
        };
        self.against = self.against.saturating_add(1);
        if self.against < needed {
            return None;
        }
        self.against = 0;
        let (health, flip) = if success { (Health::Up, Flip::Up) } else { (Health::Down, Flip::Down) };
        self.health = health;
        Some(flip)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const THRESHOLDS: Thresholds = Thresholds { rise: 2, fall: 3, initial: InitialHealth::Down };

    #[test]
    fn the_first_result_decides_at_once() {
        assert_eq!(HealthState::new(THRESHOLDS).observe(true), Some(Flip::Up));
        assert_eq!(HealthState::new(THRESHOLDS).observe(false), Some(Flip::Down));
    }

    #[test]
    fn a_success_breaks_a_row_of_failures() {
        let mut state = HealthState::resume(THRESHOLDS, Health::Up);
        let results = [false, false, true, false, false, false, true, false, true, true];
        let flips: Vec<_> = results.into_iter().map(|result| state.observe(result)).collect();
        assert_eq!(flips.iter().flatten().collect::<Vec<_>>(), [&Flip::Down, &Flip::Up]);
        assert_eq!((flips[5], flips[9]), (Some(Flip::Down), Some(Flip::Up)));
    }

    #[test]
    fn before_the_first_result_initial_decides() {
        assert!(!HealthState::new(THRESHOLDS).usable());
        assert!(HealthState::new(Thresholds { initial: InitialHealth::Up, ..THRESHOLDS }).usable());
        assert!(!Health::Down.usable(InitialHealth::Up) && Health::Up.usable(InitialHealth::Down));
    }

    #[test]
    fn a_row_goes_on_where_another_process_has_left_it() {
        let mut old = HealthState::resume(THRESHOLDS, Health::Up);
        assert_eq!((old.observe(false), old.observe(false), old.against()), (None, None, 2));
        let mut new = HealthState::resume(THRESHOLDS, old.health()).having(old.against());
        assert_eq!(new.observe(false), Some(Flip::Down));
    }

    proptest! {
        #[test]
        fn a_flip_needs_a_row(results in prop::collection::vec(any::<bool>(), 0..60), rise in 1u32..5, fall in 1u32..5) {
            let mut state = HealthState::new(Thresholds { rise, fall, initial: InitialHealth::Down });
            for end in 0..results.len() {
                let before = state.health();
                let flip = state.observe(results[end]);
                let needed = if before == Health::Unknown { 1 } else if results[end] { rise } else { fall } as usize;
                let row = results[..=end].iter().rev().take_while(|result| **result == results[end]).count();
                let other = if results[end] { Health::Up } else { Health::Down } != before;
                prop_assert_eq!(flip.is_some(), other && row >= needed);
            }
        }
    }
}
