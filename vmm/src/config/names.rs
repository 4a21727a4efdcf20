//! Ids and MAC addresses: strings that are checked when they are parsed.

use std::fmt;
use std::ops::Deref;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest id, in bytes.
const ID_MAX: usize = 63;

/// A name of a VM, a disk or a network card: `[a-z0-9][a-z0-9-]{0,62}`. It is safe as a file name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Id(String);

impl FromStr for Id {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = text.as_bytes();
        if bytes.is_empty() {
            return Err("is empty".into());
        }
        if bytes.len() > ID_MAX {
            return Err(format!("is {} bytes long, more than {ID_MAX}", bytes.len()));
        }
        if !plain(bytes[0]) {
            return Err("does not start with a lower-case letter or a digit".into());
        }
        match text.chars().find(|&c| !(c == '-' || u8::try_from(c).is_ok_and(plain))) {
            Some(c) => Err(format!("holds {c:?}")),
            None => Ok(Self(text.into())),
        }
    }
}

impl TryFrom<String> for Id {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Id> for String {
    fn from(id: Id) -> Self {
        id.0
    }
}

impl Deref for Id {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A unicast Ethernet address that is not all zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// A locally administered address made of two names (FNV-1a), the same on every host and in every version.
    #[must_use]
    pub fn derived(vm: &str, nic: &str) -> Self {
        let fnv = |hash: u64, &b: &u8| (hash ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3);
        let bytes = vm.as_bytes().iter().chain([b'/'].iter()).chain(nic.as_bytes());
        let h = bytes.fold(0xcbf2_9ce4_8422_2325, fnv).to_be_bytes();
        Self([0x02, h[0] ^ h[5], h[1] ^ h[6], h[2] ^ h[7], h[3], h[4]])
    }
}

impl FromStr for MacAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut mac = [0u8; 6];
        let mut parts = text.split(':');
        for byte in &mut mac {
            let part = parts.next().unwrap_or("");
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err("is not six pairs of hexadecimal digits".into());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|e| e.to_string())?;
        }
        if parts.next().is_some() {
            return Err("is not six pairs of hexadecimal digits".into());
        }
        if mac[0] & 1 != 0 {
            return Err("is a multicast address (its first byte is odd)".into());
        }
        if mac == [0; 6] {
            return Err("is all zero".into());
        }
        Ok(Self(mac))
    }
}

impl TryFrom<String> for MacAddr {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<MacAddr> for String {
    fn from(mac: MacAddr) -> Self {
        mac.to_string()
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}
