//! What the Debian guest's job `traffic` runs on each node of a network: everything that can travel between two machines,
//! numbered, and an account of what came.
//!
//! ```text
//! traffic NODE HOSTS RATE     NODE: this one's index; HOSTS: NAME:ADDRESS,… of all; RATE: rounds a second, 0: without rest
//! ```
//!
//! A round is an Ethernet frame and a UDP datagram to each other node. TCP has a connection from each node to each other,
//! with some KiB a round. Who sends, what, and how it is checked: frames.rs, tcp.rs. A line `x` on the console ends the
//! sending, here; when all others have ended theirs and all has come, or nothing more comes, it prints its account:
//!
//! ```text
//! CKVMM traffic received=N retransmitted=N                                         every second
//! CKVMM traffic from=N by=ethernet|udp sent=N received=N lost=N duplicated=N reordered=N corrupt=N
//! CKVMM traffic from=N by=tcp bytes=N corrupt=N
//! CKVMM traffic final retransmitted=N timeouts=N probes=N dropped=N                TCP's counters; full sockets
//! ```

mod counters;
mod frames;
#[path = "../../bare-metal/model.rs"]
#[allow(dead_code, reason = "the other guest uses the rest")]
mod model;
#[path = "../../bare-metal/net_model.rs"]
#[allow(dead_code, reason = "the other guest uses the rest")]
mod net_model;
mod packet;
mod route;
mod tcp;

use std::{
    env,
    fs::File,
    io::{self, BufRead, BufReader},
    net::Ipv4Addr,
    process::ExitCode,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use frames::Frames;
use net_model::Stream;

/// When nothing has come for so long, nothing more comes.
const PATIENCE: Duration = Duration::from_secs(20);

/// What came from another node.
#[derive(Clone, Copy, Default)]
struct Account {
    ethernet: Stream,
    udp: Stream,
    corrupt: [u64; 2],
    tcp_bytes: u64,
    tcp_corrupt: u64,
    /// How many frames it has sent by each way, once it has ended.
    sent: Option<u64>,
}

impl Account {
    /// All that it has sent is here.
    fn whole(&self) -> bool {
        self.sent.is_some_and(|sent| self.ethernet.received >= sent && self.udp.received >= sent)
    }

    fn received(&self) -> u64 {
        self.ethernet.received + self.udp.received + self.tcp_bytes
    }
}

/// What all threads share.
struct Node {
    me: usize,
    hosts: Vec<Ipv4Addr>,
    /// From one round to the next.
    period: Duration,
    stopped: AtomicBool,
    /// Connections to others and from others: what is sent before all are there may be lost.
    met: AtomicUsize,
    /// What TCP had sent again by then.
    retransmitted: AtomicU64,
    /// Rounds that were sent, once that is over.
    rounds: AtomicU64,
    /// By node.
    accounts: Vec<Mutex<Account>>,
}

/// [`Node::rounds`] while they go on.
const GOES_ON: u64 = u64::MAX;

impl Node {
    fn others(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.hosts.len()).filter(|node| *node != self.me)
    }

    fn account(&self, node: usize) -> MutexGuard<'_, Account> {
        self.accounts[node].lock().unwrap()
    }

    fn received(&self) -> u64 {
        self.others().map(|node| self.account(node).received()).sum()
    }

    /// Waits until all nodes are connected with this one.
    fn meet(&self) {
        while self.met.load(Ordering::Acquire) < 2 * (self.hosts.len() - 1) {
            thread::sleep(Duration::from_millis(20));
        }
        self.retransmitted.store(counters::tcp("RetransSegs"), Ordering::Relaxed);
    }

    /// Segments that TCP has sent again since.
    fn retransmitted(&self) -> u64 {
        counters::tcp("RetransSegs").saturating_sub(self.retransmitted.load(Ordering::Relaxed))
    }

    fn stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Waits until all that `from` has sent is here, or nothing more comes.
    fn drain(&self, from: usize) {
        let (mut before, mut since) = (0, Instant::now());
        while !self.account(from).whole() && since.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(20));
            let now = self.received();
            if now != before {
                (before, since) = (now, Instant::now());
            }
        }
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("CKVMM error traffic: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> io::Result<()> {
    let node = &arguments().ok_or_else(|| io::Error::other("usage: traffic NODE NAME:ADDRESS,... RATE"))?;
    let frames = &Frames::open(node)?;
    let listener = &tcp::listen()?;
    thread::scope(|scope| {
        scope.spawn(|| frames.take_ethernet(node));
        scope.spawn(|| frames.take_udp(node));
        let mut ends: Vec<_> = node.others().map(|to| scope.spawn(move || tcp::send(node, to))).collect();
        ends.extend(node.others().map(|_| scope.spawn(|| tcp::take(node, listener))));
        ends.push(scope.spawn(|| frames.send(node)));
        scope.spawn(|| wait_for_word(node));
        while !ends.iter().all(thread::ScopedJoinHandle::is_finished) {
            println!("CKVMM traffic received={} retransmitted={}", node.received(), node.retransmitted());
            thread::sleep(Duration::from_secs(1));
        }
        let failed: Vec<_> = ends.into_iter().filter_map(|end| end.join().unwrap().err()).collect();
        tell(node, frames);
        failed.into_iter().for_each(|error| println!("CKVMM error traffic: {error}"));
        // Who only receives has no end.
        std::process::exit(0)
    })
}

fn arguments() -> Option<Node> {
    let mut words = env::args().skip(1);
    let me = words.next()?.parse().ok()?;
    let hosts: Vec<Ipv4Addr> =
        words.next()?.split(',').map(|host| host.split_once(':')?.1.parse().ok()).collect::<Option<_>>()?;
    let rate: f64 = words.next()?.parse().ok()?;
    let period = if rate > 0.0 { Duration::from_secs_f64(1.0 / rate) } else { Duration::ZERO };
    let accounts = hosts.iter().map(|_| Mutex::default()).collect();
    Some(Node {
        me,
        hosts,
        period,
        stopped: false.into(),
        met: 0.into(),
        retransmitted: 0.into(),
        rounds: GOES_ON.into(),
        accounts,
    })
}

/// The line on the console that ends the sending.
fn wait_for_word(node: &Node) {
    let console = File::open("/dev/console").expect("there is a console");
    let word = BufReader::new(console).lines().map_while(Result::ok).find(|line| line.trim() == "x");
    node.stopped.store(word.is_some(), Ordering::Relaxed);
}

fn tell(node: &Node, frames: &Frames) {
    for from in node.others() {
        let account = *node.account(from);
        let sent = account.sent.unwrap_or_default();
        let ways = [("ethernet", account.ethernet), ("udp", account.udp)];
        for ((way, mut stream), corrupt) in ways.into_iter().zip(account.corrupt) {
            stream.told(sent);
            let Stream { received, lost, duplicated, reordered, .. } = stream;
            println!(
                "CKVMM traffic from={from} by={way} sent={sent} received={received} lost={lost} duplicated={duplicated} \
                 reordered={reordered} corrupt={corrupt}"
            );
        }
        println!("CKVMM traffic from={from} by=tcp bytes={} corrupt={}", account.tcp_bytes, account.tcp_corrupt);
    }
    println!(
        "CKVMM traffic final retransmitted={} timeouts={} probes={} dropped={}",
        node.retransmitted(),
        counters::tcp("TCPTimeouts"),
        counters::tcp("TCPLossProbes"),
        frames.dropped() + counters::udp("RcvbufErrors") + counters::udp("MemErrors")
    );
}
