//! Serde form of KVM's structures: their bytes, all of them and no more.
//!
//! (The form that kvm-bindings brings accepts a truncated structure and zeroes the rest.)

use serde::{Deserialize, Deserializer, Serializer, de::Error};
use serde_bytes::ByteBuf;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// For `#[serde(with = "pod")]`.
pub fn serialize<T: IntoBytes + Immutable, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bytes(value.as_bytes())
}

/// For `#[serde(with = "pod")]`.
pub fn deserialize<'de, T: FromBytes, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    let bytes = ByteBuf::deserialize(deserializer)?;
    T::read_from_bytes(&bytes).map_err(|_| wrong_length::<T, D>(bytes.len()))
}

fn wrong_length<'de, T, D: Deserializer<'de>>(got: usize) -> D::Error {
    D::Error::custom(format!("{} has {got} bytes, not {}", std::any::type_name::<T>(), size_of::<T>()))
}

/// The same for a list of structures, one after the other.
pub mod list {
    use super::*;

    /// For `#[serde(with = "pod::list")]`.
    pub fn serialize<T: IntoBytes + Immutable, S: Serializer>(value: &[T], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(value.as_bytes())
    }

    /// For `#[serde(with = "pod::list")]`.
    pub fn deserialize<'de, T: FromBytes, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
        let bytes = ByteBuf::deserialize(deserializer)?;
        if bytes.len() % size_of::<T>() != 0 {
            return Err(wrong_length::<T, D>(bytes.len()));
        }
        bytes
            .chunks_exact(size_of::<T>())
            .map(|chunk| T::read_from_bytes(chunk).map_err(|_| wrong_length::<T, D>(chunk.len())))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use kvm_bindings::kvm_mp_state;
    use serde::Serialize;

    use super::*;

    #[derive(Serialize, Deserialize)]
    struct Sample {
        #[serde(with = "super")]
        one: kvm_mp_state,
        #[serde(with = "super::list")]
        many: Vec<kvm_mp_state>,
    }

    #[test]
    fn bytes_come_back_and_a_truncated_structure_does_not() {
        let sample = Sample { one: kvm_mp_state { mp_state: 3 }, many: vec![kvm_mp_state { mp_state: 5 }; 2] };
        let json = serde_json::to_value(&sample).unwrap();
        let back: Sample = serde_json::from_value(json.clone()).unwrap();
        assert_eq!((back.one.mp_state, back.many[1].mp_state, back.many.len()), (3, 5, 2));
        for field in ["one", "many"] {
            let mut short = json.clone();
            short[field].as_array_mut().unwrap().pop();
            let error = serde_json::from_value::<Sample>(short).err().unwrap().to_string();
            assert!(error.contains("bytes, not 4"), "{error}");
        }
    }
}
