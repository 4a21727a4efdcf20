//! Saved state: named, versioned, and nothing of it ever lost in silence.
//!
//! The `state` file, little-endian:
//!
//! ```text
//!  0  8  magic "CKVMMSTA"
//!  8  4  format version, 1
//! 12  8  length of all that follows, bytes
//! 20  4  number of entries; then each, by ascending name:
//!        2 + n  name (UTF-8)      2 + n  kind (UTF-8)      2  version      8 + n  content
//! ```
//!
//! The content is MessagePack with named fields, so that a newer type can have more of them with defaults.
//!
//! Invariant: a name occurs once; [`StateMap::take`] gives each state to exactly one taker, and [`StateMap::finish`]
//! fails if one was left. A saved type is never the runtime type; `save` destructures its device without `..`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Flaw, Result, Versions};
use crate::limits::{STATE_BYTES_MAX, STATE_ENTRIES_MAX, STATE_NAME_BYTES_MAX};
use crate::wire::Reader;

const MAGIC: &[u8; 8] = b"CKVMMSTA";
const STATE_FORMAT_VERSION: u16 = 1;
const HEADER_BYTES: usize = 20;

/// A type that is written to an image. It is plain data, apart from the runtime type that it is saved from.
pub trait Saved: Serialize + DeserializeOwned {
    /// What it is the state of, for example `serial-16550`. Never changes.
    const KIND: &'static str;
    /// Version of the type that `save` writes. Raised when an old reader would go wrong.
    const VERSION: u16;
    /// Oldest version that this type still decodes: newer fields have `#[serde(default)]`.
    const OLDEST: u16 = Self::VERSION;
}

/// Something whose state can be saved and put back while nothing runs.
///
/// Laws: `save` changes nothing; `restore(save())` undoes whatever happened in between; a state that does not fit is
/// [`Error::Restore`] and never a panic.
pub trait Snapshot {
    /// The saved type.
    type State: Saved;

    /// Copies the state out.
    ///
    /// # Errors
    /// [`Error::Save`] with the reason.
    fn save(&self) -> Result<Self::State>;

    /// Puts a state back.
    ///
    /// # Errors
    /// [`Error::Restore`] with the reason; the device is then not to be run.
    fn restore(&mut self, state: Self::State) -> Result<()>;
}

/// The states of a whole machine, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StateMap {
    entries: BTreeMap<String, Entry>,
    /// Bytes of the encoded entries: kept so that `put` can hold the bound that `decode` checks.
    bytes: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    kind: String,
    version: u16,
    content: Vec<u8>,
}

impl StateMap {
    /// An empty map.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a state.
    ///
    /// # Errors
    /// [`Error::StateDuplicate`] if the name is taken, [`Error::StateName`] beyond the bounds of [`crate::limits`],
    /// [`Error::StateContent`] if it does not serialise.
    pub fn put<S: Saved>(&mut self, name: &str, state: &S) -> Result<()> {
        let refuse = |why| Err(Error::StateName { name: name.to_owned(), why });
        if name.is_empty() || name.len() > STATE_NAME_BYTES_MAX {
            return refuse("its name is empty or longer than 255 bytes");
        }
        if S::KIND.is_empty() || S::KIND.len() > STATE_NAME_BYTES_MAX {
            return refuse("its kind is empty or longer than 255 bytes");
        }
        if self.entries.contains_key(name) {
            return Err(Error::StateDuplicate { name: name.to_owned() });
        }
        if self.entries.len() == STATE_ENTRIES_MAX {
            return refuse("one state more than a checkpoint holds");
        }
        let content = rmp_serde::to_vec_named(state)
            .map_err(|source| Error::StateContent { name: name.to_owned(), why: source.to_string() })?;
        let entry = Entry { kind: S::KIND.to_owned(), version: S::VERSION, content };
        let bytes = self.bytes + entry.encoded_len(name);
        if (HEADER_BYTES + 4 + bytes) as u64 > STATE_BYTES_MAX {
            return refuse("with it the states are larger than a checkpoint holds");
        }
        self.bytes = bytes;
        self.entries.insert(name.to_owned(), entry);
        Ok(())
    }

    /// Takes a state out.
    ///
    /// # Errors
    /// [`Error::StateMissing`], [`Error::StateKind`], [`Error::StateVersion`], [`Error::StateContent`]; the state
    /// then stays in the map.
    pub fn take<S: Saved>(&mut self, name: &str) -> Result<S> {
        let entry = self.entries.get(name).ok_or_else(|| Error::StateMissing { name: name.to_owned() })?;
        if entry.kind != S::KIND {
            return Err(Error::StateKind { name: name.to_owned(), found: entry.kind.clone(), wanted: S::KIND });
        }
        if !(S::OLDEST..=S::VERSION).contains(&entry.version) {
            return Err(Error::StateVersion {
                name: name.to_owned(),
                kind: S::KIND,
                found: entry.version,
                reads: Versions { oldest: S::OLDEST, newest: S::VERSION },
            });
        }
        let state = decode_content(&entry.content).map_err(|why| Error::StateContent { name: name.to_owned(), why })?;
        self.bytes -= entry.encoded_len(name);
        self.entries.remove(name);
        Ok(state)
    }

    /// The names that are still in the map, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Ends a restore.
    ///
    /// # Errors
    /// [`Error::StateLeft`] with the names that nobody took.
    pub fn finish(self) -> Result<()> {
        if self.entries.is_empty() {
            return Ok(());
        }
        Err(Error::StateLeft { names: self.entries.into_keys().collect() })
    }

    /// The bytes of the `state` file. Equal maps give equal bytes.
    pub fn encode(&self) -> Vec<u8> {
        let payload_len = 4 + self.bytes;
        let mut out = Vec::with_capacity(HEADER_BYTES + payload_len);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&u32::from(STATE_FORMAT_VERSION).to_le_bytes());
        out.extend_from_slice(&(payload_len as u64).to_le_bytes());
        out.extend_from_slice(&(self.entries.len() as u32).to_le_bytes());
        for (name, entry) in &self.entries {
            put_text(&mut out, name);
            put_text(&mut out, &entry.kind);
            out.extend_from_slice(&entry.version.to_le_bytes());
            out.extend_from_slice(&(entry.content.len() as u64).to_le_bytes());
            out.extend_from_slice(&entry.content);
        }
        debug_assert_eq!(out.len(), HEADER_BYTES + payload_len, "the running length is exact");
        out
    }

    /// Reads what [`StateMap::encode`] wrote. Contents are decoded when they are taken.
    ///
    /// # Errors
    /// [`Error::FormatVersion`] and [`Error::Damaged`], which name the file `state`.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        Self::parse(bytes).map_err(|flaw| flaw.at(Path::new("state")))
    }

    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Flaw> {
        let mut reader = Reader::new(bytes);
        reader.header(MAGIC, Versions::only(STATE_FORMAT_VERSION), "state file")?;
        let payload_len = reader.u64()?;
        if payload_len != reader.left() as u64 || bytes.len() as u64 > STATE_BYTES_MAX {
            return Err(Flaw::broken(format!("it states {payload_len} bytes of content and has {}", reader.left())));
        }
        let count = reader.u32()? as usize;
        if count > STATE_ENTRIES_MAX {
            return Err(Flaw::broken(format!("it states {count} entries")));
        }
        let mut map = StateMap::new();
        for _ in 0..count {
            let name = get_text(&mut reader)?;
            let kind = get_text(&mut reader)?;
            let version = reader.u16()?;
            let len = usize::try_from(reader.u64()?).map_err(|_| Flaw::broken("it ends too early"))?;
            let entry = Entry { kind, version, content: reader.bytes(len)?.to_vec() };
            if map.entries.last_key_value().is_some_and(|(last, _)| *last >= name) {
                return Err(Flaw::broken(format!("its entry `{name}` is out of order")));
            }
            map.bytes += entry.encoded_len(&name);
            map.entries.insert(name, entry);
        }
        reader.end()?;
        Ok(map)
    }
}

impl Entry {
    fn encoded_len(&self, name: &str) -> usize {
        (2 + name.len()) + (2 + self.kind.len()) + 2 + (8 + self.content.len())
    }
}

/// Decodes a content to its last byte: a rest would be state that nobody looks at.
fn decode_content<S: DeserializeOwned>(content: &[u8]) -> Result<S, String> {
    let mut deserializer = rmp_serde::Deserializer::new(content);
    let state = S::deserialize(&mut deserializer).map_err(|source| source.to_string())?;
    match deserializer.get_ref().len() {
        0 => Ok(state),
        more => Err(format!("{more} bytes follow its end")),
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    debug_assert!(text.len() <= STATE_NAME_BYTES_MAX);
    out.extend_from_slice(&(text.len() as u16).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn get_text(reader: &mut Reader<'_>) -> Result<String, Flaw> {
    let len = usize::from(reader.u16()?);
    if len == 0 || len > STATE_NAME_BYTES_MAX {
        return Err(Flaw::broken(format!("it has a name of {len} bytes")));
    }
    let text = std::str::from_utf8(reader.bytes(len)?).map_err(|_| Flaw::broken("it has a name that is not UTF-8"))?;
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests;
