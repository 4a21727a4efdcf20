//! What must hold. The oracle looks at what guests have sent and got, and at no state of the code under test.

use ckvmm_net::{Colour, Node};

use crate::world::{Plan, World};

/// Of a cut that is a checkpoint, on every link: sent before the sender's cut = got before the receiver's cut, and then
/// what was logged, in order, once.
pub(crate) fn check_checkpoint(
    plan: &Plan,
    world: &World,
    cut: Colour,
    parts: &[(Node, ())],
) -> Result<(), &'static str> {
    let images = parts.iter().map(|(node, ())| world.nodes[node.index()].images.get(&cut).map(|image| (*node, image)));
    let images: Vec<_> = images.collect::<Option<_>>().ok_or("a checkpoint lacks a part")?;
    for (to, image) in &images {
        let mut guest = image.guest.clone();
        for frame in image.log.iter().flatten() {
            if !guest.take(plan, to.0, *frame) {
                return Err("a checkpoint has a frame twice, or not in order");
            }
        }
        for from in 0..plan.nodes() {
            let its_image = images.iter().find(|(node, _)| node.0 == from);
            // A guest that is off has sent all that it ever will.
            let sent = its_image.map_or(world.nodes[usize::from(from)].guest.sent, |(_, image)| image.guest.sent);
            let got = guest.received[usize::from(from)];
            if got > sent {
                return Err("a checkpoint has a frame that was sent after it");
            }
            let mut missing = plan.frames(from, to.0, got).take_while(|number| *number <= sent);
            if from != to.0 && !missing.all(|number| guest.dropped.contains(&(from, number))) {
                return Err("a checkpoint lacks a frame");
            }
        }
    }
    Ok(())
}

/// A packet is held: a cut is to be taken.
pub(crate) fn held_without_cut(world: &World) -> bool {
    let every = 0..world.nodes.len() as u16;
    world.nodes.iter().any(|vmm| vmm.taking.is_none() && every.clone().any(|other| vmm.holds(other)))
}

/// Nothing can happen any more: all frames have come, and no cut is open.
pub(crate) fn is_stuck(plan: &Plan, world: &World) -> bool {
    let mut actions = Vec::new();
    world.actions(plan, &mut actions);
    actions.is_empty() && !is_at_rest(plan, world)
}

/// All frames have come where there is somebody to take them, and no cut is open.
pub(crate) fn is_at_rest(plan: &Plan, world: &World) -> bool {
    let nodes = || (0..plan.nodes()).zip(&world.nodes);
    let came = |from: u16, to: u16| {
        let (sender, receiver) = (&world.nodes[usize::from(from)].guest, &world.nodes[usize::from(to)].guest);
        let mut missing = plan.frames(from, to, receiver.received[usize::from(from)]);
        missing.all(|number| number > sender.sent || receiver.dropped.contains(&(from, number)))
    };
    let on = || nodes().filter(|(_, vmm)| !vmm.off && !vmm.lost);
    let sent = on().all(|(me, vmm)| usize::from(vmm.guest.sent) == plan.scripts[usize::from(me)].len());
    let all_came =
        on().all(|(to, vmm)| nodes().all(|(from, _)| from == to || vmm.broken[usize::from(from)] || came(from, to)));
    // One that has been replaced may wait for ever for what was told to the other.
    let idle = world.seats.iter().any(|seat| seat.brain.may_begin());
    // Where a VMM is lost, others may wait for ever to start: the network can only be restored.
    let (sent, idle) = if nodes().any(|(_, vmm)| vmm.lost) { (true, true) } else { (sent, idle) };
    sent && all_came && idle && nodes().all(|(_, vmm)| vmm.taking.is_none() && vmm.writing.is_none())
}
