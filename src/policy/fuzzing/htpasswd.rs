//! Lines of htpasswd files, and credentials as clients send them.

use super::super::password::{Credentials, Users, Verdicts, parse_line};

/// A line is a user or a fault that does not tell the hash. Nothing is verified: that is slow on purpose.
///
/// # Panics
/// If that does not hold.
pub fn htpasswd(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let mut users = Vec::new();
    for line in text.lines().take(64) {
        match parse_line(line) {
            Ok((user, hash)) => {
                assert!(!user.is_empty() && line.starts_with(&format!("{user}:")));
                users.push((user, hash));
            }
            Err(fault) => {
                let told = fault.to_string();
                assert!(line.len() < 24 || !told.contains(line));
            }
        }
    }
    let count = users.len();
    let users = Users::new(users);
    assert!(users.len() <= count && users.is_empty() == (count == 0));
    assert_eq!(format!("{users:?}"), format!("Users {{ count: {}, .. }}", users.len()));
    if let Some(credentials) = Credentials::of(&super::fields(input)) {
        assert_eq!(format!("{credentials:?}"), "Credentials");
        let verdicts = Verdicts::new(&[7; 32]);
        assert_eq!(verdicts.tag(&credentials), verdicts.tag(&credentials));
    }
}
