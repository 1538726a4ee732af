//! Bodies, read strictly: a key that stands twice, a field that is not known and a value of another kind are errors that
//! name the place.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Visitor},
};

use super::problem::{Kind, Problem, shown};
use crate::types::Weight;

/// A JSON value that keeps the order of its keys and has none twice.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Json {
    /// `true`, `false`
    Bool(bool),
    /// `[…]`
    List(Vec<Self>),
    /// `null`
    Null,
    /// A whole number from 0.
    Number(u64),
    /// `{…}`
    Object(Vec<(String, Self)>),
    /// Another number.
    OtherNumber,
    /// `"…"`
    Text(String),
}

impl Json {
    /// Reads a body.
    ///
    /// # Errors
    /// It is not JSON, or a key stands twice.
    pub(super) fn parse(body: &[u8]) -> Result<Self, Problem> {
        serde_json::from_slice(body)
            .map_err(|error| Problem::new(Kind::BadJson, format!("the body is not JSON: {error}")))
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Bool(_) => "true or false",
            Self::List(_) => "a list",
            Self::Null => "null",
            Self::Number(_) | Self::OtherNumber => "a number",
            Self::Object(_) => "an object",
            Self::Text(_) => "a text",
        }
    }

    /// The text.
    ///
    /// # Errors
    /// It is none.
    pub(super) fn text(&self, place: &str) -> Result<&str, Problem> {
        match self {
            Self::Text(text) => Ok(text),
            other => Err(wrong(place, "a text", other)),
        }
    }

    /// The items.
    ///
    /// # Errors
    /// It is no list.
    pub(super) fn list(&self, place: &str) -> Result<&[Self], Problem> {
        match self {
            Self::List(items) => Ok(items),
            other => Err(wrong(place, "a list", other)),
        }
    }

    /// The keys and values, whatever the keys.
    ///
    /// # Errors
    /// It is no object.
    pub(super) fn entries(&self, place: &str) -> Result<&[(String, Self)], Problem> {
        match self {
            Self::Object(entries) => Ok(entries),
            other => Err(wrong(place, "an object", other)),
        }
    }

    /// The fields of an object that has none but these. `place` is where it stands in the body; empty for the whole.
    ///
    /// # Errors
    /// It is no object, or has another field.
    pub(super) fn fields<'a>(&'a self, place: &str, known: &[&str]) -> Result<Fields<'a>, Problem> {
        let fields = Fields { place: place.to_owned(), entries: self.entries(place)? };
        match fields.entries.iter().find(|(name, _)| !known.contains(&name.as_str())) {
            Some((name, _)) => {
                Err(Problem::unknown(Kind::InvalidValue, "field", fields.path(&shown(name)), name, known))
            }
            None => Ok(fields),
        }
    }
}

/// Fields of one object.
pub(super) struct Fields<'a> {
    place: String,
    entries: &'a [(String, Json)],
}

impl<'a> Fields<'a> {
    /// Where a field stands in the body.
    pub(super) fn path(&self, name: &str) -> String {
        if self.place.is_empty() { name.to_owned() } else { format!("{}.{name}", self.place) }
    }

    /// A field; `null` counts as left out.
    pub(super) fn find(&self, name: &str) -> Option<&'a Json> {
        self.entries.iter().find(|(key, _)| key == name).map(|(_, value)| value).filter(|value| **value != Json::Null)
    }

    /// A text.
    ///
    /// # Errors
    /// It is none.
    pub(super) fn text(&self, name: &str) -> Result<Option<&'a str>, Problem> {
        self.find(name).map(|value| value.text(&self.path(name))).transpose()
    }

    /// A text that must be there.
    ///
    /// # Errors
    /// It is missing, or no text.
    pub(super) fn needed(&self, name: &str) -> Result<&'a str, Problem> {
        self.text(name)?.ok_or_else(|| Problem::value(self.path(name), format!("`{name}` is missing")))
    }

    /// A weight.
    ///
    /// # Errors
    /// It is none, or too large.
    pub(super) fn weight(&self, name: &str) -> Result<Option<Weight>, Problem> {
        let Some(value) = self.find(name) else { return Ok(None) };
        let weight = match value {
            Json::Number(number) => u16::try_from(*number).ok().and_then(Weight::new),
            _ => None,
        };
        let whole = format!("a whole number from 0 to {}", Weight::MAX);
        match weight {
            Some(weight) => Ok(Some(weight)),
            None if matches!(value, Json::Number(_) | Json::OtherNumber) => {
                Err(Problem::value(self.path(name), format!("a weight is {whole}")))
            }
            None => Err(wrong(&self.path(name), &whole, value)),
        }
    }
}

fn wrong(place: &str, needed: &str, found: &Json) -> Problem {
    let what = if place.is_empty() { "the body".to_owned() } else { format!("`{place}`") };
    let problem = Problem::new(Kind::InvalidValue, format!("{what} has to be {needed}, and is {}", found.kind()));
    Problem { field: (!place.is_empty()).then(|| place.into()), ..problem }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Number(value))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Json, E> {
        Ok(Json::OtherNumber)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Json, E> {
        Ok(Json::OtherNumber)
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::Text(value.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Json, A::Error> {
        let mut object: Vec<(String, Json)> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        while let Some((key, value)) = entries.next_entry::<String, Json>()? {
            if !seen.insert(key.clone()) {
                return Err(A::Error::custom(format_args!("the key `{}` stands twice", shown(&key))));
            }
            object.push((key, value));
        }
        Ok(Json::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_json_or_stands_twice_is_refused() {
        for bad in ["", "{", "{\"a\":1,\"a\":2}", "{\"x\":{\"a\":1,\"a\":1}}", "[1]]", "{'a':1}", "\u{feff}{}"] {
            let problem = Json::parse(bad.as_bytes()).expect_err(bad);
            assert_eq!(problem.kind, Kind::BadJson, "{bad}");
        }
        let deep = "[".repeat(100_000);
        assert!(Json::parse(deep.as_bytes()).is_err(), "depth is bounded");
    }

    #[test]
    fn fields_are_known_or_refused_with_their_place() {
        let json = Json::parse(br#"{"adress":"a:1","weight":1.5}"#).expect("JSON");
        let problem = json.fields("backends[1]", &["address", "weight"]).err().expect("unknown");
        assert_eq!(problem.field.as_deref(), Some("backends[1].adress"));
        let hint = problem.hint.unwrap_or_default();
        assert!(hint.contains("did you mean `address`?") && hint.contains("known here: address, weight"), "{hint}");
        for (text, field) in [
            (r#"{"weight":1.5}"#, "weight"),
            (r#"{"weight":1001}"#, "weight"),
            (r#"{"weight":-1}"#, "weight"),
            (r#"{"weight":"2"}"#, "weight"),
        ] {
            let json = Json::parse(text.as_bytes()).expect("JSON");
            let fields = json.fields("", &["weight"]).unwrap_or_else(|problem| panic!("{problem:?}"));
            let problem = fields.weight("weight").expect_err(text);
            assert_eq!((problem.kind, problem.field.as_deref()), (Kind::InvalidValue, Some(field)), "{text}");
        }
    }
}
