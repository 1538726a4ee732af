//! Passwords of Basic authentication (RFC 7617): the lines of an htpasswd file, what a client sent, and a cache of what
//! was verified. Hashes are bcrypt or argon2, nothing that is cheap to guess. Verifying is meant to be slow; where it runs is
//! not decided here.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher as _, RandomState},
    time::{Duration, Instant},
};

use argon2::{
    Argon2, Version,
    password_hash::{PasswordHash, PasswordHashString, PasswordVerifier as _},
};
use aws_lc_rs::hmac;
use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::NO_PAD},
};
use http::header;

use super::fields::Fields;

#[cfg(test)]
mod tests;

/// A stored password.
#[derive(Clone)]
enum Hash {
    Argon2(PasswordHashString),
    Bcrypt(String),
}

/// Why a line of an htpasswd file cannot be used. Never says the hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// No colon, or nothing before it.
    #[error("not of the form `user:hash`")]
    NotAPair,
    /// MD5, SHA-1, crypt, plain text.
    #[error("the hash is neither bcrypt nor argon2")]
    OtherHash,
    /// Of the right kind, but not whole.
    #[error("the hash is not well-formed")]
    Malformed,
    /// Argon2 of a version that nobody has.
    #[error("the hash is of an unknown version of argon2: there are v=19 and v=16")]
    OtherVersion,
    /// One verification would take seconds, or a gigabyte.
    #[error("the hash costs too much to verify: bcrypt at most 2^16, argon2 at most 256 MiB and 64 passes")]
    TooCostly,
}

/// Longer does a verification not take: 2^16 rounds are about 4 seconds.
const MOST_BCRYPT_COST: u32 = 16;
/// KiB of one verification.
const MOST_ARGON2_MEMORY: u32 = 256 << 10;
const MOST_ARGON2_PASSES: u32 = 64;
/// Longer credentials are nobody's.
const LONGEST_CREDENTIALS: usize = 1024;

/// The users of an htpasswd file.
pub struct Users {
    hashes: HashMap<Vec<u8>, Hash>,
    /// Hashes against which unknown users are verified: those of the file, so that it takes as long as for a known one.
    decoys: Vec<Hash>,
    /// Which decoy an unknown user gets is always the same one, and cannot be foretold.
    seed: RandomState,
}

impl Users {
    /// Takes the users that [`parse_line`] read. Of several of one name the first counts.
    pub fn new(lines: impl IntoIterator<Item = (String, StoredPassword)>) -> Self {
        let mut hashes = HashMap::new();
        let mut decoys = Vec::new();
        for (name, StoredPassword(hash)) in lines {
            decoys.push(hash.clone());
            hashes.entry(name.into_bytes()).or_insert(hash);
        }
        Self { hashes, decoys, seed: RandomState::new() }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// Whether these are the credentials of a user. Slow on purpose (milliseconds to seconds), and as slow for users that
    /// are not known.
    pub fn verify(&self, credentials: &Credentials) -> bool {
        match self.hashes.get(credentials.user()) {
            Some(hash) => hash.verify(credentials.password()),
            None => {
                let at = self.seed.hash_one(credentials.user()) as usize % self.decoys.len().max(1);
                if let Some(decoy) = self.decoys.get(at) {
                    std::hint::black_box(decoy.verify(credentials.password()));
                }
                false
            }
        }
    }
}

impl std::fmt::Debug for Users {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Users").field("count", &self.hashes.len()).finish_non_exhaustive()
    }
}

/// A stored password, never shown.
#[derive(Clone)]
pub struct StoredPassword(Hash);

/// Reads a line of an htpasswd file without its line break: `user:hash`.
///
/// # Errors
/// What is wrong with it.
pub fn parse_line(line: &str) -> Result<(String, StoredPassword), LineError> {
    let (user, hash) = line.split_once(':').filter(|(user, _)| !user.is_empty()).ok_or(LineError::NotAPair)?;
    // Apache allows more fields behind the hash; neither form of hash has a colon.
    let hash = hash.split(':').next().unwrap_or_default().trim_end();
    Ok((user.to_owned(), StoredPassword(Hash::parse(hash)?)))
}

impl Hash {
    fn parse(text: &str) -> Result<Self, LineError> {
        if ["$2a$", "$2b$", "$2y$"].iter().any(|prefix| text.starts_with(prefix)) {
            let parts: bcrypt::HashParts = text.parse().map_err(|_| LineError::Malformed)?;
            // What the parser does not look at; salt and hash are 22 and 31 characters.
            let encoded = text.get(text.len().saturating_sub(53)..).and_then(|rest| rest.split_at_checked(22));
            let (salt, hash) = encoded.ok_or(LineError::Malformed)?;
            let decodes = |part: &str, length| BCRYPT.decode(part).is_ok_and(|bytes| bytes.len() == length);
            return match parts.get_cost() {
                4..=MOST_BCRYPT_COST if decodes(salt, 16) && decodes(hash, 23) => Ok(Self::Bcrypt(text.to_owned())),
                17..=31 => Err(LineError::TooCostly),
                _ => Err(LineError::Malformed),
            };
        }
        if !text.starts_with("$argon2") {
            return Err(LineError::OtherHash);
        }
        let mut hash = PasswordHash::new(text).map_err(|_| LineError::Malformed)?;
        // What says no version was made before there was a second one; the crate would take it for one of the second.
        let version = *hash.version.get_or_insert(Version::V0x10.into());
        Version::try_from(version).map_err(|_| LineError::OtherVersion)?;
        let known = [argon2::ARGON2D_IDENT, argon2::ARGON2I_IDENT, argon2::ARGON2ID_IDENT].contains(&hash.algorithm);
        // Before the crate multiplies it: more lanes than this it does not take either way.
        let mut lanes = hash.params.iter().filter(|(name, _)| name.as_str() == "p").map(|(_, value)| value.decimal());
        if lanes.any(|lanes| lanes.is_ok_and(|lanes| lanes > argon2::Params::MAX_P_COST)) {
            return Err(LineError::Malformed);
        }
        let params = argon2::Params::try_from(&hash).map_err(|_| LineError::Malformed)?;
        if params.m_cost() > MOST_ARGON2_MEMORY || params.t_cost() > MOST_ARGON2_PASSES {
            return Err(LineError::TooCostly);
        }
        let salt = hash.salt.and_then(|salt| salt.decode_b64(&mut [0; 64]).ok().map(<[u8]>::len));
        let whole = known && salt.is_some_and(|length| length >= argon2::MIN_SALT_LEN) && hash.hash.is_some();
        if whole { Ok(Self::Argon2(hash.serialize())) } else { Err(LineError::Malformed) }
    }

    /// Both crates compare in constant time.
    fn verify(&self, password: &[u8]) -> bool {
        match self {
            Self::Argon2(hash) => Argon2::default().verify_password(password, &hash.password_hash()).is_ok(),
            Self::Bcrypt(hash) => bcrypt::verify(password, hash).unwrap_or(false),
        }
    }
}

const BCRYPT: GeneralPurpose = GeneralPurpose::new(&alphabet::BCRYPT, NO_PAD);

/// A user and a password as a client sent them. Shown nowhere.
pub struct Credentials {
    /// `user:password`
    pair: Vec<u8>,
    colon: usize,
}

impl Credentials {
    /// Reads `Authorization`; `None` where there is none, more than one, or none of Basic authentication.
    pub fn of(headers: &impl Fields) -> Option<Self> {
        const SCHEME: &[u8] = b"basic ";
        const LENIENT: GeneralPurpose = GeneralPurpose::new(
            &alphabet::STANDARD,
            GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
        );
        let mut all = headers.all(&header::AUTHORIZATION);
        let value = all.next().filter(|_| all.next().is_none())?;
        let (scheme, rest) = value.split_at_checked(SCHEME.len())?;
        if !scheme.eq_ignore_ascii_case(SCHEME) || rest.len() > LONGEST_CREDENTIALS.div_ceil(3) * 4 {
            return None;
        }
        let pair = LENIENT.decode(rest.trim_ascii()).ok()?;
        // Control characters are forbidden (RFC 7617 §2); bcrypt would end at a NUL.
        if pair.iter().any(u8::is_ascii_control) {
            return None;
        }
        let colon = pair.iter().position(|byte| *byte == b':')?;
        Some(Self { pair, colon })
    }

    /// The user's name.
    pub fn user(&self) -> &[u8] {
        self.pair.get(..self.colon).unwrap_or_default()
    }

    fn password(&self) -> &[u8] {
        self.pair.get(self.colon + 1..).unwrap_or_default()
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials")
    }
}

/// What stands for credentials in the cache: a keyed hash, of which neither user nor password can be found.
pub type Tag = [u8; 32];

/// How long bad credentials are known as such.
pub const BAD_LIFE: Duration = Duration::from_secs(60);
/// How long good ones are, since they were last used. A reload that finds another file forgets them at once, so time adds nothing to
/// what they prove; who is known waits for nobody who guesses.
pub const GOOD_LIFE: Duration = Duration::from_secs(12 * 3600);
/// Verdicts of each kind that are kept; each takes about 130 bytes.
const MOST_VERDICTS: usize = 8192;

/// What was verified lately. Good and bad credentials are kept apart, so that guessing pushes nobody out.
pub struct Verdicts {
    secret: hmac::Key,
    good: Kept,
    bad: Kept,
}

/// Tags with the time until which they hold, and that time in the order in which they came, or were found in use when it was their turn
/// to go (the CLOCK algorithm; a look-up costs no more for it).
#[derive(Default)]
struct Kept {
    until: HashMap<Tag, Instant>,
    order: VecDeque<(Tag, Instant)>,
}

impl Verdicts {
    /// An empty cache; `secret` is random and stays in the process.
    pub fn new(secret: &[u8; 32]) -> Self {
        Self { secret: hmac::Key::new(hmac::HMAC_SHA256, secret), good: Kept::default(), bad: Kept::default() }
    }

    /// What stands for these credentials. Looking one up may take a time that depends on tags, and a client cannot
    /// choose or foretell those.
    pub fn tag(&self, credentials: &Credentials) -> Tag {
        let tag = hmac::sign(&self.secret, &credentials.pair);
        let mut out = Tag::default();
        out.copy_from_slice(tag.as_ref());
        out
    }

    /// What is known of a tag at `now`. What is good holds longer for having been asked.
    pub fn get(&mut self, tag: &Tag, now: Instant) -> Option<bool> {
        if let Some(until) = self.good.until.get_mut(tag).filter(|until| now < **until) {
            *until = now + GOOD_LIFE;
            return Some(true);
        }
        self.bad.until.get(tag).is_some_and(|until| now < *until).then_some(false)
    }

    /// Keeps what was found out at `now`.
    pub fn put(&mut self, tag: Tag, good: bool, now: Instant) {
        let (kept, life) = if good { (&mut self.good, GOOD_LIFE) } else { (&mut self.bad, BAD_LIFE) };
        kept.make_room(now);
        // One that still holds keeps its place in the order.
        if kept.until.insert(tag, now + life).is_none() {
            kept.order.push_back((tag, now + life));
        }
    }
}

impl Kept {
    /// Takes out what holds no more, and while it is full the first that has not been used since it was last looked at here.
    fn make_room(&mut self, now: Instant) {
        while let Some((tag, seen)) = self.order.front().copied() {
            if self.order.len() < MOST_VERDICTS && now < seen {
                break;
            }
            self.order.pop_front();
            match self.until.get(&tag).copied() {
                // Used since.
                Some(until) if until > seen && now < until => self.order.push_back((tag, until)),
                _ => drop(self.until.remove(&tag)),
            }
        }
    }
}

impl std::fmt::Debug for Verdicts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Verdicts")
    }
}
