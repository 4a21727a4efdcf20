//! All VMMs are killed, and the network goes on from the last checkpoint.

use std::mem;

use ckvmm_net::{Incarnation, Node};

use super::{Image, Plan, Store, Vmm, World};

impl World {
    /// What is on the wires stays there: it is of another life, and must not reach a guest.
    pub(crate) fn restore(&mut self, plan: &Plan) {
        let Ok(base) = self.last_checkpoint() else {
            self.is_wrong("there was a checkpoint, and there is none to go back to");
            return;
        };
        self.count("restores", 1);
        self.incarnation = Incarnation(self.incarnation.0 + 1);
        self.nodes = match &base {
            Some(images) => (0..).zip(images).map(|(me, image)| self.restored(plan, me, image, images)).collect(),
            None => (0..plan.nodes()).map(|me| Vmm::new(plan.cut(me, self.incarnation), me, plan.nodes())).collect(),
        };
        for vmm in 0..plan.nodes() {
            for other in 0..plan.nodes() {
                if self.nodes[usize::from(vmm)].off || self.nodes[usize::from(other)].off {
                    let wire = self.wire(vmm, other);
                    self.wires[wire].clear();
                }
            }
        }
        self.store = Store { ever: mem::take(&mut self.store.ever), base, ..Store::default() };
        self.start();
    }

    /// The images of the last checkpoint; `None` if there never was one.
    fn last_checkpoint(&self) -> Result<Option<Vec<Option<Image>>>, ()> {
        let Some((cut, parts)) = self.store.committed() else {
            return if self.store.ever && self.store.base.is_none() { Err(()) } else { Ok(self.store.base.clone()) };
        };
        let mut images = vec![None; self.nodes.len()];
        for (node, ()) in parts {
            images[node.index()] = Some(self.nodes[node.index()].images.get(&cut).cloned().ok_or(())?);
        }
        Ok(Some(images))
    }

    fn restored(&self, plan: &Plan, me: u16, image: &Option<Image>, all: &[Option<Image>]) -> Vmm {
        let mut cut = plan.cut(me, self.incarnation);
        let parted: Vec<_> = all.iter().map(Option::is_none).collect();
        for (other, _) in (0..).zip(&parted).filter(|(_, parted)| **parted) {
            cut.absent(Node(other));
        }
        let mut vmm = Vmm { parted, ..Vmm::new(cut, me, plan.nodes()) };
        let Some(image) = image else { return vmm.absent(self.nodes[usize::from(me)].guest.clone()) };
        for frame in image.log.iter().flatten() {
            vmm.cut.preload(Node(frame.from), *frame);
        }
        Vmm { guest: image.guest.clone(), ..vmm }
    }
}
