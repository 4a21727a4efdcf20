//! What must not be wrong with the code: each of these, put between it and the world, is found by the model checker.

use ckvmm_net::{Colour, Content, Incarnation, Node, Packet};

use crate::world::{Frame, Vmm};

/// Something wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Mutant {
    /// What was under way at a cut is not kept.
    NoLog,
    /// A packet of a higher colour is let in before the cut.
    NoHold,
    /// A part is reported while links are open.
    PrepareEarly,
    /// Only the coordinator makes a VM take a cut.
    NoForcedCut,
    /// Older checkpoints go before the new one is decided.
    PruneEarly,
    /// A second decision replaces the first.
    DecisionOverwritten,
}

impl Mutant {
    pub(crate) const ALL: [Mutant; 6] = [
        Mutant::NoLog,
        Mutant::NoHold,
        Mutant::PrepareEarly,
        Mutant::NoForcedCut,
        Mutant::PruneEarly,
        Mutant::DecisionOverwritten,
    ];
}

/// A link on which nothing is held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Unheld {
    /// The highest colour that came.
    newest: Colour,
    /// Packets that were added.
    added: u64,
    /// Place of the next that comes.
    next: u64,
}

/// Without the hold: makes of a packet that is too new one of the VM's own colour, and notes which it had.
pub(crate) fn let_in_early(vmm: &mut Vmm, packet: Packet<Frame>, from: u16) -> Packet<Frame> {
    let own = vmm.cut.colour();
    let link = vmm.unheld.entry(from).or_default();
    link.newest = link.newest.max(packet.colour);
    link.next = packet.link_seq + 1;
    Packet { colour: packet.colour.min(own), link_seq: packet.link_seq + link.added, ..packet }
}

/// And when the cut is taken after all, the markers that close the links for it.
pub(crate) fn close_late(vmm: &mut Vmm, cut: Colour, incarnation: Incarnation) -> Vec<(Node, Packet<Frame>)> {
    let due = vmm.unheld.iter_mut().filter(|(_, link)| link.newest >= cut);
    let markers = due.map(|(from, link)| {
        let link_seq = link.next + link.added;
        link.added += 1;
        (Node(*from), Packet { incarnation, colour: cut, link_seq, content: Content::Marker })
    });
    markers.collect()
}
