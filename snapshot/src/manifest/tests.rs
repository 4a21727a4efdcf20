//! A trip wire on the bytes of a manifest, its seal, and manifests that lie.

use super::*;
use crate::digest::Digest;

const MANIFEST: &str = include_str!("version-1.json");

fn manifest() -> Manifest {
    let whole = |byte| FileDigest::Whole(Digest([byte; 32]));
    let entry = |bytes, digest| FileEntry { bytes, digest };
    Manifest {
        format_version: 1,
        ckvmm_version: "0.1.0".to_owned(),
        id: Uuid::from_u128(0x0102_0304_0506_4708_890a_0b0c_0d0e_0f10),
        lineage: Uuid::from_u128(1),
        parent: None,
        name: "node0".to_owned(),
        created: "2024-05-06T07:08:09.123456789Z".parse().expect("a time"),
        mode: "stop".to_owned(),
        config: serde_json::json!({ "name": "node0", "vcpus": 2 }),
        host: serde_json::json!(null),
        memory_bytes: 134_217_728,
        pause_us: 1500,
        duration_us: 1_234_567,
        files: BTreeMap::from([
            ("state".to_owned(), entry(105, whole(1))),
            ("memory".to_owned(), entry(134_217_728, FileDigest::Chunks(Digest([2; 32])))),
            ("memory.map".to_owned(), entry(200, whole(2))),
            ("disks/root".to_owned(), entry(20_000, FileDigest::Chunks(Digest([3; 32])))),
            ("disks/root.map".to_owned(), entry(73, whole(3))),
        ]),
    }
}

/// Moves when a byte of the format does: then [`FORMAT_VERSION`] is to be raised and a golden image added.
#[test]
fn the_bytes_are_those_of_version_1() {
    let encoded = String::from_utf8(manifest().encode().expect("encodes")).expect("JSON is UTF-8");
    assert_eq!(encoded, MANIFEST);
    assert_eq!(Manifest::decode(MANIFEST.as_bytes()).expect("decodes"), manifest());
}

#[test]
fn every_changed_byte_is_seen() {
    for at in 0..MANIFEST.len() {
        for change in [1, 0x20, 0x80] {
            let mut bytes = MANIFEST.as_bytes().to_vec();
            bytes[at] ^= change;
            Manifest::decode(&bytes).expect_err("a changed byte");
        }
        Manifest::decode(&MANIFEST.as_bytes()[..at]).expect_err("a truncated one");
    }
    for more in ["\n", " ", "{}"] {
        Manifest::decode(format!("{MANIFEST}{more}").as_bytes()).expect_err("more than was written");
    }
}

#[test]
fn another_version_says_so_whatever_else_it_holds() {
    for text in
        [r#"{"format_version":7}"#.to_owned(), MANIFEST.replace("\"format_version\": 1", "\"format_version\": 7")]
    {
        let line = Manifest::decode(text.as_bytes()).expect_err("another version").to_string();
        assert!(line.contains("format version 7, this ckvmm reads 1 to 3"), "{line}");
    }
}

#[test]
fn what_a_newer_ckvmm_adds_is_ignored() {
    let mut json: serde_json::Value = serde_json::from_str(MANIFEST).expect("JSON");
    json["network"] = serde_json::json!({ "nics": [] });
    assert_eq!(Manifest::decode(&sealed(&json)).expect("decodes"), manifest());
}

/// Seals any JSON object, as an attacker or another program would.
fn sealed(json: &serde_json::Value) -> Vec<u8> {
    let mut json = json.clone();
    json.as_object_mut().expect("an object").remove("seal");
    let text = serde_json::to_string_pretty(&json).expect("JSON");
    crate::seal::sealed(&text).into_bytes()
}

#[test]
fn a_sealed_lie_is_still_a_lie() {
    type Lie = fn(&mut serde_json::Value);
    let lies: [(&str, Lie); 13] = [
        ("no state", |json| drop(json["files"].as_object_mut().expect("an object").remove("state"))),
        ("no memory", |json| drop(json["files"].as_object_mut().expect("an object").remove("memory"))),
        ("no map", |json| drop(json["files"].as_object_mut().expect("an object").remove("memory.map"))),
        ("another file", |json| json["files"]["../../etc/passwd"] = json["files"]["state"].clone()),
        ("itself", |json| json["files"]["manifest.json"] = json["files"]["state"].clone()),
        ("a disk's name", |json| json["files"]["disks/../state"] = json["files"]["state"].clone()),
        ("a size", |json| json["files"]["memory"]["bytes"] = serde_json::json!(u64::MAX)),
        ("a negative size", |json| json["files"]["memory"]["bytes"] = serde_json::json!(-1)),
        ("state by chunks", |json| json["files"]["state"]["digest"] = json["files"]["memory"]["digest"].clone()),
        ("memory as a whole", |json| json["files"]["memory"]["digest"] = json["files"]["state"]["digest"].clone()),
        ("another map", |json| json["files"]["memory.map"]["digest"] = json["files"]["state"]["digest"].clone()),
        ("another digest", |json| json["files"]["state"]["digest"] = serde_json::json!("md5:00")),
        ("too many", |json| {
            for index in 0..=MANIFEST_FILES_MAX {
                json["files"][format!("disks/d{index}.map")] = json["files"]["state"].clone();
            }
        }),
    ];
    for (what, lie) in lies {
        let mut json: serde_json::Value = serde_json::from_str(MANIFEST).expect("JSON");
        Manifest::decode(&sealed(&json)).expect("the truth decodes");
        lie(&mut json);
        let error = Manifest::decode(&sealed(&json)).expect_err(what);
        assert!(matches!(error, Error::Damaged { .. }), "{what}: {error}");
    }
}

#[test]
fn a_manifest_beyond_the_bound_is_not_written() {
    let config = serde_json::json!("x".repeat(MANIFEST_BYTES_MAX as usize));
    let error = Manifest { config, ..manifest() }.encode().expect_err("too large");
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
}
