//! Our own small guest on this machine's own `/dev/kvm`, at real speed: thousands of checkpoints under writes, and all
//! of the guest's memory compared with a model of what it must be.
//!
//! The oracle is `model.rs`, the guest's own description of its writes: how many steps it says it has done decides what
//! every cell of its arena must hold, but for the one write that may have begun. `picture` holds images against it.
//!
//! Without a `/dev/kvm` that can be opened each test says that it is skipped.

mod cluster;
#[expect(unreachable_pub, reason = "it is written for the guest")]
#[path = "../../guest-images/bare-metal/disk_model.rs"]
mod disk_model;
mod disks;
mod echo;
mod ends;
mod guest;
mod host_trouble;
mod job;
mod kills;
mod live;
#[expect(dead_code, unreachable_pub, reason = "it is written for the guest, which uses the rest")]
#[path = "../../guest-images/bare-metal/model.rs"]
mod model;
mod net;
#[expect(unreachable_pub, reason = "it is written for the guest")]
#[path = "../../guest-images/bare-metal/net_model.rs"]
mod net_model;
#[expect(unreachable_pub, reason = "it is written for the guest")]
#[path = "../../guest-images/bare-metal/net_node.rs"]
mod net_node;
mod network;
mod network_deaf;
mod network_end;
mod network_faults;
mod network_moved;
mod network_room;
mod network_status;
mod network_store;
mod network_time;
mod oracle;
mod picture;
mod qcow2;
mod random;
mod rounds;
mod seed;
mod shapes;
mod unread;
mod writer;
