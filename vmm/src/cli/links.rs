//! `ckvmm network link` and `capture`: what is done to the links of a network, and seen of them.

use std::path::PathBuf;

use anyhow::Context as _;

use super::network::State;
use super::output;
use crate::config::parse_duration;
use crate::network::control::{LinkName, Verb, ask, find_state};
use crate::network::message;

/// Longest delay, microseconds: a minute.
const DELAY_MAX: u64 = 60_000_000;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  ckvmm network link --delay 0-50ms       # all links; --delay 0ms: as they were
  ckvmm network link n-0:n-1 --hold       # what is sent stays on its way; who sends waits when the link is full

Both directions of a link have the fault. A restored network has none.")]
#[group(id = "fault", required = true, multiple = false, args = ["delay", "hold", "break_off"])]
pub(super) struct Fault {
    /// One link, or all of a node [default: all links]
    #[arg(value_name = "NODE[:PEER]", value_parser = link_name)]
    links: Option<LinkName>,
    /// How long each packet takes, or the least and the most; none overtakes another
    #[arg(long, value_name = "TIME[-TIME]", value_parser = delay)]
    delay: Option<(u64, u64)>,
    /// What the delays are drawn from
    #[arg(long, value_name = "N", default_value_t = 0, requires = "delay")]
    seed: u64,
    /// Packets stay on their way, until the next --delay
    #[arg(long)]
    hold: bool,
    /// The connection ends, as when a host fails: the network can only be restored
    #[arg(long = "break")]
    break_off: bool,
    #[command(flatten)]
    state: State,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  ckvmm network capture n-0:n-1 one.pcap  # until the VM ends, or the file has 1 GiB
  ckvmm network capture n-0               # ends that")]
pub(super) struct Capture {
    /// One link, or all of the node
    #[arg(value_name = "NODE[:PEER]", value_parser = link_name)]
    links: LinkName,
    /// A new file; without it, the capture is ended
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    state: State,
}

impl Fault {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let Fault { links, delay, seed, hold, break_off, state } = self;
        let fault = match delay {
            Some((least, most)) => message::Fault::Delay(least, most, seed),
            None if hold => message::Fault::Hold,
            None => {
                assert!(break_off, "one of them is given");
                message::Fault::Break
            }
        };
        ask(&find_state(state.dir)?, Verb::Fault(links, fault)).map(drop)
    }
}

impl Capture {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let Capture { links, file, state } = self;
        // The supervisor may have another current directory.
        let file =
            file.map(std::path::absolute).transpose().context("the current directory: not found; name a path")?;
        let file = ask(&find_state(state.dir)?, Verb::Capture(links, file))?;
        file.as_str().map_or(Ok(()), output::print)
    }
}

fn link_name(text: &str) -> Result<LinkName, String> {
    let names: Vec<&str> = text.split(':').collect();
    match names[..] {
        [node] if !node.is_empty() => Ok(LinkName { node: node.into(), peer: None }),
        [node, peer] if !node.is_empty() && !peer.is_empty() => {
            Ok(LinkName { node: node.into(), peer: Some(peer.into()) })
        }
        _ => Err("name a node, or two with \':\' between them".into()),
    }
}

/// `50ms`, or `0-50ms`; in microseconds.
fn delay(text: &str) -> Result<(u64, u64), String> {
    let (least, most) = text.split_once('-').unwrap_or((text, text));
    let unit = most.trim_start_matches(|letter: char| letter.is_ascii_digit());
    let least =
        if least.ends_with(|letter: char| letter.is_ascii_digit()) { format!("{least}{unit}") } else { least.into() };
    let micros = |text: &str| parse_duration(text).ok().map(|time| time.as_micros() as u64);
    match (micros(&least), micros(most)) {
        (Some(least), Some(most)) if least <= most && most <= DELAY_MAX => Ok((least, most)),
        _ => Err("give a time of up to a minute like 20ms, or the least and the most like 0-50ms".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_is_a_time_or_two() {
        assert_eq!(delay("20ms"), Ok((20_000, 20_000)));
        assert_eq!(delay("0-50ms"), Ok((0, 50_000)));
        assert_eq!(delay("50ms-1s"), Ok((50_000, 1_000_000)));
        for wrong in ["", "-", "20", "50-0ms", "-5ms", "5ms-", "0-61s", "0-1-2ms", "0.5ms", "9999999999999999h"] {
            assert!(delay(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_link_is_named_by_its_ends() {
        assert_eq!(link_name("n-0").unwrap(), LinkName { node: "n-0".into(), peer: None });
        assert_eq!(link_name("n-0:n-1").unwrap(), LinkName { node: "n-0".into(), peer: Some("n-1".into()) });
        for wrong in ["", ":", "a:", ":b", "a:b:c"] {
            assert!(link_name(wrong).is_err(), "{wrong}");
        }
    }
}
