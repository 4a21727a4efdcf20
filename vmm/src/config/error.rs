//! What is wrong with a configuration, in one line: the thing, what is wrong with it, the mend.

use std::path::Path;

use serde_json::Value;
use serde_path_to_error::Segment;

use super::fields;

/// Longest piece of somebody's value that an error repeats, in characters.
const SHOWN_MAX: usize = 60;

/// A configuration that cannot be used. Exit status 2.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A field of `vm.json`, or of what `--set` made of it.
    #[error("{origin}{field}: {what}; {mend}")]
    Field {
        /// `"vm.json: "`, or empty when the configuration did not come from a file.
        origin: String,
        /// As `--set` names it, `disks.root.path`.
        field: String,
        /// What is wrong.
        what: String,
        /// What to do.
        mend: String,
    },
    /// The file itself.
    #[error("{path}: {what}; {mend}")]
    File {
        /// Its path.
        path: String,
        /// What is wrong.
        what: String,
        /// What to do.
        mend: String,
    },
    /// Not JSON.
    #[error("{path}: line {line}, column {column}: {what}; mend the JSON there (// and /* */ comments are allowed)")]
    Syntax {
        /// The file.
        path: String,
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// What the parser says.
        what: String,
    },
}

impl ConfigError {
    /// A field with what is wrong with it and what to do.
    pub fn field(field: impl Into<String>, what: impl Into<String>, mend: impl Into<String>) -> Self {
        Self::Field { origin: String::new(), field: field.into(), what: what.into(), mend: mend.into() }
    }

    /// A file with what is wrong with it and what to do.
    pub fn file(path: &Path, what: impl Into<String>, mend: impl Into<String>) -> Self {
        Self::File { path: path.display().to_string(), what: what.into(), mend: mend.into() }
    }

    /// The same error, naming the file that the field stands in.
    #[must_use]
    pub fn in_file(mut self, path: &Path) -> Self {
        if let Self::Field { origin, .. } = &mut self {
            *origin = format!("{}: ", path.display());
        }
        self
    }

    /// What serde found wrong with `root`, in the words of [`fields::FIELDS`].
    pub(super) fn from_serde(error: serde_path_to_error::Error<serde_json::Error>, root: &Value) -> Self {
        let place = Place::find(root, error.path());
        let message = error.inner().to_string();
        if let Some(name) = quoted_after(&message, "unknown field ") {
            return place.unknown_field(&name, &message);
        }
        if let Some(name) = quoted_after(&message, "missing field ") {
            let field = join(&place.field, &name);
            let mend = format!("give {}", fields::expected(&join(&place.pattern, &name)));
            return Self::field(field, "missing", mend);
        }
        let expected = fields::expected(&place.pattern);
        let what = match place.value {
            Some(value) if generic(&message) => format!("{} does not fit", shown(value)),
            Some(value) => format!("{} {message}", shown(value)),
            None => message.clone(),
        };
        let mut mend = format!("give {expected}");
        if let Some(name) = quoted_after(&message, "unknown variant ")
            && let Some(near) = nearest(&name, &alternatives(&message))
        {
            mend = format!("did you mean {near:?}? give {expected}");
        }
        let field = if place.field.is_empty() { "configuration".into() } else { place.field };
        Self::field(field, what, mend)
    }
}

/// Where in the document an error is.
struct Place<'a> {
    /// With ids: `disks.root.mode`.
    field: String,
    /// As in the table: `disks[].mode`.
    pattern: String,
    value: Option<&'a Value>,
}

impl<'a> Place<'a> {
    fn find(root: &'a Value, path: &serde_path_to_error::Path) -> Self {
        let mut place = Self { field: String::new(), pattern: String::new(), value: Some(root) };
        for segment in path {
            place = match segment {
                Segment::Map { key } | Segment::Enum { variant: key } => Self {
                    field: join(&place.field, key),
                    pattern: join(&place.pattern, key),
                    value: place.value.and_then(|v| v.get(key)),
                },
                Segment::Seq { index } => {
                    let element = place.value.and_then(|v| v.get(index));
                    let id = element.and_then(|e| e.get("id")).and_then(Value::as_str);
                    let name = id.filter(|id| id.parse::<super::Id>().is_ok());
                    let name = name.map_or_else(|| index.to_string(), str::to_owned);
                    Self { field: join(&place.field, &name), pattern: format!("{}[]", place.pattern), value: element }
                }
                Segment::Unknown => place,
            };
        }
        place
    }

    fn unknown_field(self, name: &str, message: &str) -> ConfigError {
        // the path may or may not end with the unknown name itself
        let ends_with_name = self.field == name || self.field.ends_with(&format!(".{name}"));
        let field = if ends_with_name { self.field } else { join(&self.field, name) };
        let names = alternatives(message);
        let mend = match nearest(name, &names) {
            Some(near) => format!("did you mean {near:?}?"),
            None if names.is_empty() => "take it out".into(),
            None => format!("take it out, or use one of {}", names.join(", ")),
        };
        ConfigError::field(field, "no such field", mend)
    }
}

fn join(path: &str, name: &str) -> String {
    let name: String = name.chars().take(SHOWN_MAX).collect();
    if path.is_empty() { name } else { format!("{path}.{name}") }
}

/// Whether serde speaks of Rust types, which say nothing to a user, and not one of our own parsers.
fn generic(message: &str) -> bool {
    ["invalid type", "invalid value", "invalid length", "unknown variant"].iter().any(|s| message.starts_with(s))
}

/// The name in backquotes after `prefix`, if `message` begins with it.
fn quoted_after(message: &str, prefix: &str) -> Option<String> {
    let rest = message.strip_prefix(prefix)?.strip_prefix('`')?;
    // a name may hold backquotes itself; what serde adds after it begins with "`, expected" or "`" at the end
    let end = rest.rfind("`, expected").or_else(|| rest.rfind("`, there are no")).or_else(|| rest.rfind('`'))?;
    Some(rest[..end].to_owned())
}

/// The names that serde would have taken.
fn alternatives(message: &str) -> Vec<&str> {
    let Some(start) = message.rfind(", expected ") else { return Vec::new() };
    message[start..].split('`').skip(1).step_by(2).collect()
}

/// The nearest of `names`, if it is near enough to be what was meant.
pub(super) fn nearest<'a>(name: &str, names: &[&'a str]) -> Option<&'a str> {
    let name: String = name.chars().take(SHOWN_MAX).collect::<String>().to_lowercase();
    let distance = |candidate: &str| strsim::damerau_levenshtein(&name, candidate);
    let scored = names.iter().map(|candidate| (distance(candidate), !candidate.starts_with(&name), *candidate));
    let (distance, _, best) = scored.min()?;
    let near = distance <= 1 + best.len().min(name.len()) / 3 || best.starts_with(&name) || name.starts_with(best);
    (near && !name.is_empty()).then_some(best)
}

/// A value as an error repeats it: JSON, cut if it is long.
pub(super) fn shown(value: &Value) -> String {
    let kind = match value {
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
        _ => {
            let text = value.to_string();
            if text.chars().count() <= SHOWN_MAX {
                return text;
            }
            return text.chars().take(SHOWN_MAX).chain("...".chars()).collect();
        }
    };
    kind.into()
}
