//! Who is asking, and what they may do: whoever can open the unix socket may do everything and is known by their user
//! number; on TCP a token says it.

use std::sync::Arc;

use arc_swap::ArcSwap;
use aws_lc_rs::{
    constant_time::verify_slices_are_equal,
    digest::{Digest, SHA256, digest},
};
use http::{HeaderMap, header};

use super::problem::{Kind, Problem};
use crate::config::model::{AdminTcp, Token};

/// What a route asks of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// It changes something.
    Change,
    /// It only looks.
    Read,
}

/// Whose connection it is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Peer {
    /// Of a program of this user; `None` where the system does not say.
    Local(Option<u32>),
    /// On TCP; a token says who.
    Remote,
}

/// Who is asking.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    /// In events and log lines: `uid 1000`, `token`, `read-token`.
    pub(super) who: String,
    /// What they may do.
    pub(super) access: Access,
    /// On this host, and the user that the process runs as or root: whoever may have it run another program.
    pub(super) is_owner: bool,
}

/// The tokens of the TCP listener, as digests: comparing those takes the same time whatever is sent, its length too.
pub struct Tokens {
    change: Digest,
    read: Option<Digest>,
}

impl Tokens {
    /// `change` may do everything, `read` may only look. Without an empty one: it would be no secret.
    pub fn new(change: &Token, read: Option<&Token>) -> Self {
        let digest_of = |token: &Token| digest(&SHA256, &token.secret);
        Self { change: digest_of(change), read: read.filter(|token| !token.secret.is_empty()).map(digest_of) }
    }

    fn access(&self, token: &[u8]) -> Option<Access> {
        if token.is_empty() {
            return None;
        }
        let given = digest(&SHA256, token);
        let is = |known: &Digest| verify_slices_are_equal(known.as_ref(), given.as_ref()).is_ok();
        // Both are always compared.
        let (change, read) = (is(&self.change), self.read.as_ref().is_some_and(is));
        if change { Some(Access::Change) } else { read.then_some(Access::Read) }
    }
}

/// Tokens that a reload exchanges: each request is asked for those that hold then.
pub type LiveTokens = Arc<ArcSwap<Tokens>>;

impl From<&AdminTcp> for Tokens {
    fn from(admin: &AdminTcp) -> Self {
        Self::new(&admin.token, admin.read_token.as_ref())
    }
}

/// Who sends this.
///
/// # Errors
/// On TCP: no token, or none that is known.
pub(super) fn authenticate(peer: Peer, tokens: Option<&Tokens>, headers: &HeaderMap) -> Result<Caller, Problem> {
    match peer {
        Peer::Local(uid) => {
            let who = uid.map_or_else(|| "local".to_owned(), |uid| format!("uid {uid}"));
            let is_owner = uid.is_some_and(|uid| uid == 0 || uid == nix::unistd::geteuid().as_raw());
            Ok(Caller { who, access: Access::Change, is_owner })
        }
        Peer::Remote => {
            let hint = "send the text of `token_file` as `Authorization: Bearer …`";
            let token = bearer(headers)
                .ok_or_else(|| Problem::new(Kind::Unauthorized, "the request has no token").hint(hint))?;
            match tokens.and_then(|tokens| tokens.access(token)) {
                Some(access @ Access::Change) => Ok(Caller { who: "token".into(), access, is_owner: false }),
                Some(access @ Access::Read) => Ok(Caller { who: "read-token".into(), access, is_owner: false }),
                None => Err(Problem::new(Kind::Unauthorized, "the token is not known").hint(hint)),
            }
        }
    }
}

/// The token of `Authorization: Bearer TOKEN` (RFC 6750 §2.1); `None` also where there are two.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (value, None) = (values.next()?.as_bytes(), values.next()) else { return None };
    let (scheme, token) = value.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn token(text: &str) -> Token {
        Token { path: "token".into(), secret: text.as_bytes().into() }
    }

    fn ask(tokens: &Tokens, value: &str) -> Option<&'static str> {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, HeaderValue::from_str(value).expect("a value"));
        let caller = authenticate(Peer::Remote, Some(tokens), &headers).ok()?;
        Some(if caller.access == Access::Change { "change" } else { "read" })
    }

    #[test]
    fn a_token_has_its_role_and_nothing_near_it_has_any() {
        let tokens = Tokens::new(&token("correct horse"), Some(&token("looker")));
        assert_eq!(ask(&tokens, "Bearer correct horse"), Some("change"));
        assert_eq!(ask(&tokens, "bearer  looker "), Some("read"));
        for wrong in ["", "Bearer", "Bearer ", "Bearer correct hors", "Bearer correct horsee", "Basic looker", "looker"]
        {
            assert_eq!(ask(&tokens, wrong), None, "{wrong:?}");
        }
        assert!(authenticate(Peer::Remote, Some(&tokens), &HeaderMap::new()).is_err());
        assert!(authenticate(Peer::Remote, None, &HeaderMap::new()).is_err());
    }

    #[test]
    fn only_root_and_the_user_of_the_process_own_it() {
        let me = nix::unistd::geteuid().as_raw();
        let owns = |uid| authenticate(Peer::Local(uid), None, &HeaderMap::new()).is_ok_and(|caller| caller.is_owner);
        assert!(owns(Some(0)) && owns(Some(me)));
        assert!(!owns(Some(me + 1)) && !owns(None), "whoever is only in the socket's group");
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, HeaderValue::from_static("Bearer a"));
        let remote = authenticate(Peer::Remote, Some(&Tokens::new(&token("a"), None)), &headers).expect("a caller");
        assert!(remote.access == Access::Change && !remote.is_owner);
    }

    #[test]
    fn an_empty_token_lets_nobody_in() {
        let tokens = Tokens::new(&token(""), Some(&token("")));
        for value in ["Bearer ", "Bearer  ", "Bearer x"] {
            assert_eq!(ask(&tokens, value), None, "{value:?}");
        }
    }

    #[test]
    fn two_tokens_are_none() {
        let tokens = Tokens::new(&token("a"), None);
        let mut headers = HeaderMap::new();
        headers.append(header::AUTHORIZATION, HeaderValue::from_static("Bearer a"));
        headers.append(header::AUTHORIZATION, HeaderValue::from_static("Bearer a"));
        assert!(authenticate(Peer::Remote, Some(&tokens), &headers).is_err());
    }
}
