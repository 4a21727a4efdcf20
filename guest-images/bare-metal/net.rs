//! `job=net`: carries frames between a node (net_node.rs) and the network card, for ever. `d` at the console: takes none
//! that come, until the next `d`.

use crate::card::{self, Card};
use crate::jobs::{Account, TICKS_A_POLL, place};
use crate::machine::{Boot, Serial, number, parameter, tsc, tsc_hz};
use crate::model::{Header, Job, MAGIC, VERSION};
use crate::net_model::{LONGEST, MOST_NODES, SHORTEST, Stream};
use crate::net_node::{Node, Plan, window_for};
use crate::{fail, ram_mib};

/// Frames each way before the card is told of them, and the other way has its turn.
const BATCH: usize = 32;
/// TSC ticks between two words to a node that answers, some 7 ms.
const REST: u64 = 1 << 24;
/// TSC ticks in which everything that was sent has come, or does not at all: some 7 s.
const PATIENCE: u64 = 1 << 34;
/// Bytes of the node's pages.
const NODE_BYTES: u64 = (size_of::<Node>() as u64).next_multiple_of(4096);

/// What the command line says.
fn plan(line: &str) -> Plan {
    let get = |name, default| number(line, name, default).unwrap_or_else(|| fail(format_args!("{name}= is no number")));
    let (nodes, me, bytes, rate) = (get("peers", 2), get("me", 0), get("bytes", LONGEST as u64), get("rate", 0));
    if !(2..=MOST_NODES as u64).contains(&nodes) || me >= nodes {
        fail(format_args!("peers= is from 2 to {MOST_NODES}, and me= less"));
    }
    if !(SHORTEST as u64..=LONGEST as u64).contains(&bytes) {
        fail(format_args!("bytes= is from {SHORTEST} to {LONGEST}"));
    }
    let broadcast = match parameter(line, "broadcast") {
        None => 0,
        Some(share) => match share.strip_prefix("1/").and_then(|share| share.parse().ok()) {
            Some(share @ 1..) => share,
            _ => fail(format_args!("broadcast= is no 1/N")),
        },
    };
    let nodes = nodes as u16;
    let window = get("window", window_for(nodes, broadcast > 0, card::RECEIVE as u64));
    if window == 0 {
        fail(format_args!("window=0 lets nothing through"));
    }
    let period = if rate == 0 { 0 } else { tsc_hz() / rate };
    Plan { nodes, me: me as u16, bytes: bytes as usize, window, period, broadcast, rest: REST }
}

/// Never ends.
pub fn run(boot: &Boot) -> ! {
    let plan = plan(boot.command_line());
    let Some(arena) = place(boot, NODE_BYTES + card::BYTES, false) else { fail(format_args!("no room for frames")) };
    let mut card = Card::open(arena + NODE_BYTES);
    let Plan { nodes, me, bytes, window, period, .. } = plan;
    let node = arena as *mut Node;
    // SAFETY: RAM of our own, for a node and aligned.
    let node = unsafe {
        node.write(Node::new(plan, card.mac));
        &mut *node
    };
    let header = Header { magic: MAGIC, version: VERSION, job: Job::Net as u32, seed: 0, arena, ..Header::EMPTY };
    let mut account = Account::open(TICKS_A_POLL, header);
    let (protocol, ram) = (boot.protocol(), ram_mib(boot));
    say!(
        "ready job=net protocol={protocol} ram_mib={ram} peers={nodes} me={me} bytes={bytes} window={window} \
         period={period}"
    );
    // When sending was ended, until it is known what became of all frames.
    let mut ending = None;
    let mut deaf = false;
    loop {
        carry(node, &mut card, deaf);
        account.set_steps(node.table.sent());
        if account.tick() {
            match Serial::get() {
                Some(b'x') => {
                    node.stop();
                    ending = Some(tsc());
                }
                Some(b'd') => {
                    deaf = !deaf;
                    say!("net deaf={}", u8::from(deaf));
                }
                asked => {
                    if asked == Some(b's') {
                        report(node, format_args!(""));
                    }
                    account.serve(asked);
                }
            }
        }
        if let Some(since) = ending
            && (node.drained() || tsc().wrapping_sub(since) > PATIENCE)
        {
            ending = None;
            let drained = if node.drained() { "yes" } else { "no" };
            report(node, format_args!("final drained={drained} "));
        }
    }
}

/// What has come, unless the card is to be left alone with that, and what is to go.
fn carry(node: &mut Node, card: &mut Card, deaf: bool) {
    for _ in 0..BATCH {
        if deaf || !card.receive(|frame| node.hear(frame)) {
            break;
        }
    }
    let now = tsc();
    for _ in 0..BATCH {
        if !card.send(|to| node.speak(now, to)) {
            break;
        }
    }
    card.kick();
}

fn report(node: &Node, what: core::fmt::Arguments<'_>) {
    let table = &node.table;
    let mut acknowledged = 0;
    for (from, peer) in table.others() {
        acknowledged += peer.acknowledged;
        let corrupt = peer.corrupt;
        let Stream { received, lost, duplicated, reordered, next, .. } = peer.stream;
        say!(
            "net from={from} received={received} lost={lost} duplicated={duplicated} reordered={reordered} \
             corrupt={corrupt} next={next}"
        );
        let Stream { received, lost, duplicated, reordered, next, .. } = peer.broadcasts;
        say!(
            "net broadcasts from={from} received={received} lost={lost} duplicated={duplicated} \
             reordered={reordered} next={next}"
        );
    }
    let (sent, broadcasts) = (table.sent() - table.broadcasts, table.broadcasts);
    let (corrupt, astray, ahead, foreign) = (table.corrupt, table.astray, table.ahead, table.foreign);
    say!(
        "net {what}sent={sent} broadcasts={broadcasts} acknowledged={acknowledged} corrupt={corrupt} astray={astray} \
         ahead={ahead} foreign={foreign}"
    );
}
