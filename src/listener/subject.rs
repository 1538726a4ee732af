//! The subject of a client's certificate as text (RFC 4514), in ASCII: what is outside of it is written as `\XX`, so that no
//! name can look like another or break a field value.

use std::fmt::Write as _;

use x509_parser::{
    certificate::X509Certificate, der_parser::asn1_rs::ToDer, prelude::FromDer, x509::AttributeTypeAndValue,
};

/// Names of attributes: RFC 4514 §3, and those that are registered beside them (RFC 4520) and in use.
const NAMES: [(&str, &str); 14] = [
    ("2.5.4.3", "CN"),
    ("2.5.4.4", "SN"),
    ("2.5.4.5", "serialNumber"),
    ("2.5.4.6", "C"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.9", "STREET"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.12", "title"),
    ("2.5.4.42", "GN"),
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("1.2.840.113549.1.9.1", "emailAddress"),
];

/// Last part first, as RFC 4514 has it: `CN=device 7,O=Example,C=DE`. Empty where the subject is.
pub(super) fn of(der: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let mut out = String::new();
    let parts: Vec<_> = certificate.subject().iter().collect();
    for (at, part) in parts.into_iter().rev().enumerate() {
        for (nth, attribute) in part.iter().enumerate() {
            if nth > 0 {
                out.push('+');
            } else if at > 0 {
                out.push(',');
            }
            write_attribute(&mut out, attribute);
        }
    }
    Some(out)
}

fn write_attribute(out: &mut String, attribute: &AttributeTypeAndValue<'_>) {
    let oid = attribute.attr_type().to_id_string();
    let name = NAMES.iter().find(|(number, _)| *number == oid).map(|(_, name)| *name);
    out.push_str(name.unwrap_or(&oid));
    out.push('=');
    match attribute.as_str() {
        Ok(text) if name.is_some() => write_value(out, text),
        _ => {
            out.push('#');
            let der = attribute.attr_value().to_der_vec().unwrap_or_default();
            // Writing to memory cannot fail, here and below.
            for byte in der {
                let _ = write!(out, "{byte:02x}");
            }
        }
    }
}

fn write_value(out: &mut String, text: &str) {
    let last = text.len().saturating_sub(1);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'"' | b'+' | b',' | b';' | b'<' | b'>' | b'\\' => out.extend(['\\', char::from(byte)]),
            b'#' if at == 0 => out.push_str("\\#"),
            b' ' if at == 0 || at == last => out.push_str("\\ "),
            b' '..=b'~' => out.push(char::from(byte)),
            _ => {
                let _ = write!(out, "\\{byte:02X}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(parts: &[(rcgen::DnType, &str)]) -> String {
        let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).expect("no names");
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, text) in parts {
            params.distinguished_name.push(kind.clone(), *text);
        }
        let key = rcgen::KeyPair::generate().expect("key");
        of(params.self_signed(&key).expect("certificate").der()).expect("well-formed")
    }

    #[test]
    fn the_last_part_comes_first() {
        use rcgen::DnType::{CommonName, CountryName, OrganizationName};
        let parts = [(CountryName, "DE"), (OrganizationName, "Example"), (CommonName, "device 7")];
        assert_eq!(subject(&parts), "CN=device 7,O=Example,C=DE");
        assert_eq!(subject(&[]), "");
    }

    #[test]
    fn no_value_can_look_like_another_part() {
        let name = |text: &str| subject(&[(rcgen::DnType::CommonName, text)]);
        assert_eq!(name("a,O=admin"), "CN=a\\,O=admin");
        assert_eq!(name("a+\"<;>\\"), "CN=a\\+\\\"\\<\\;\\>\\\\");
        assert_eq!(name(" # "), "CN=\\ #\\ ");
        assert_eq!(name("#a"), "CN=\\#a");
        assert_eq!(name("a\r\nX: ü"), "CN=a\\0D\\0AX: \\C3\\BC");
    }

    #[test]
    fn an_attribute_without_a_name_is_in_numbers() {
        let own = rcgen::DnType::CustomDnType(vec![1, 3, 6, 1, 4, 1, 99999, 1]);
        assert_eq!(subject(&[(own, "ab")]), "1.3.6.1.4.1.99999.1=#0c026162");
    }
}
