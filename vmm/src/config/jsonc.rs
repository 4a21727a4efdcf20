//! JSON with comments, strictly: a name that stands twice in an object is an error, not a surprise.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Where and why a document is no JSON. Line and column count from 1.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SyntaxError {
    pub(super) line: usize,
    pub(super) column: usize,
    pub(super) what: String,
}

/// Parses `text`, in which `//` and `/* */` comments may stand wherever a space may.
pub(super) fn parse(text: &[u8]) -> Result<Value, SyntaxError> {
    let mut text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text).to_vec();
    blank_comments(&mut text).map_err(|at| {
        let before = &text[..at];
        let line = 1 + before.iter().filter(|&&b| b == b'\n').count();
        let column = 1 + before.iter().rev().take_while(|&&b| b != b'\n').count();
        SyntaxError { line, column, what: "a comment is opened and not closed".into() }
    })?;
    let mut deserializer = serde_json::Deserializer::from_slice(&text);
    let value = Strict.deserialize(&mut deserializer).and_then(|value| deserializer.end().map(|()| value));
    value.map_err(|e| {
        let what = e.to_string();
        // serde_json repeats the place at the end of its message
        let what = what.rfind(" at line ").map_or(&*what, |at| &what[..at]).to_owned();
        SyntaxError { line: e.line().max(1), column: e.column().max(1), what }
    })
}

/// Overwrites comments with spaces, keeping line breaks so that places stay right.
/// The error is the offset of a comment that does not end.
fn blank_comments(text: &mut [u8]) -> Result<(), usize> {
    let mut at = 0;
    while at < text.len() {
        match (text[at], text.get(at + 1)) {
            (b'"', _) => {
                at += 1;
                while at < text.len() && text[at] != b'"' {
                    at += if text[at] == b'\\' { 2 } else { 1 };
                }
                at += 1;
            }
            (b'/', Some(b'/')) => {
                let end = text[at..].iter().position(|&b| b == b'\n').map_or(text.len(), |n| at + n);
                text[at..end].fill(b' ');
                at = end;
            }
            (b'/', Some(b'*')) => {
                let length = text[at + 2..].windows(2).position(|w| w == b"*/").ok_or(at)?;
                let end = at + 2 + length + 2;
                text[at..end].iter_mut().filter(|b| **b != b'\n').for_each(|b| *b = b' ');
                at = end;
            }
            _ => at += 1,
        }
    }
    Ok(())
}

/// Builds a [`Value`] as serde_json does, but refuses a name that stands twice.
struct Strict;

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, b: bool) -> Result<Value, E> {
        Ok(Value::Bool(b))
    }

    fn visit_u64<E>(self, n: u64) -> Result<Value, E> {
        Ok(n.into())
    }

    fn visit_i64<E>(self, n: i64) -> Result<Value, E> {
        Ok(n.into())
    }

    fn visit_f64<E: Error>(self, n: f64) -> Result<Value, E> {
        Number::from_f64(n).map(Value::Number).ok_or_else(|| E::custom("a number that is not finite"))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = seq.next_element_seed(Strict)? {
            list.push(value);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            if object.contains_key(&name) {
                return Err(A::Error::custom(format!("{name:?} stands twice in one object")));
            }
            object.insert(name, map.next_value_seed(Strict)?);
        }
        Ok(Value::Object(object))
    }
}
