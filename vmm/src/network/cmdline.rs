//! What a guest of our own learns of its network: words of its kernel's command line, where that has `{network}`.
//!
//! ```text
//! ckvmm.name=n-0 ckvmm.node=0 ckvmm.nodes=2 ckvmm.ip=10.77.0.1/24 ckvmm.hosts=n-0:10.77.0.1,n-1:10.77.0.2
//! ckvmm.command=mpirun,a%040b,      on the job's node: a comma behind each word; % and three octal digits are a byte
//! ```
//!
//! Invariant: no word has a blank, a quote or a control character in it, so that any reader of the line finds its ends.

use std::net::Ipv4Addr;

/// What is replaced.
pub const PLACE: &str = "{network}";

/// A node's place among all.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// Which it is.
    pub index: usize,
    /// Names and addresses of all.
    pub hosts: &'a [(String, Ipv4Addr)],
    /// How many bits of an address all have in common.
    pub prefix: u32,
    /// What the node is to run; empty: nothing.
    pub command: &'a [String],
}

impl Place<'_> {
    /// The words.
    pub fn words(&self) -> String {
        let Place { index, hosts, prefix, command } = self;
        let (name, ip) = &hosts[*index];
        let all: Vec<String> = hosts.iter().map(|(name, ip)| format!("{name}:{ip}")).collect();
        let (nodes, all) = (hosts.len(), all.join(","));
        let mut words = format!(
            "ckvmm.name={name} ckvmm.node={index} ckvmm.nodes={nodes} ckvmm.ip={ip}/{prefix} ckvmm.hosts={all}"
        );
        if !command.is_empty() {
            words += " ckvmm.command=";
            words.extend(command.iter().map(|word| escaped(word) + ","));
        }
        words
    }
}

fn escaped(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./:=+@".contains(&byte);
    let shown = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:03o}") };
    word.bytes().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(command: &[&str]) -> String {
        let hosts = [("n-0".into(), Ipv4Addr::new(10, 77, 4, 1)), ("n-1".into(), Ipv4Addr::new(10, 77, 4, 2))];
        let command: Vec<String> = command.iter().map(|word| (*word).to_owned()).collect();
        Place { index: 1, hosts: &hosts, prefix: 22, command: &command }.words()
    }

    #[test]
    fn a_node_knows_itself_and_all_others() {
        let expected =
            "ckvmm.name=n-1 ckvmm.node=1 ckvmm.nodes=2 ckvmm.ip=10.77.4.2/22 ckvmm.hosts=n-0:10.77.4.1,n-1:10.77.4.2";
        assert_eq!(words(&[]), expected);
    }

    #[test]
    fn a_command_has_no_ends_of_words_in_it() {
        let words = words(&["printf", "a b", "", "\"é%,\n"]);
        assert!(words.ends_with(" ckvmm.command=printf,a%040b,,%042%303%251%045%054%012,"), "{words}");
    }
}
