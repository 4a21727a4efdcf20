//! The jobs that never end.

use crate::machine::{Boot, Serial, halt, number, parameter, tsc};
use crate::model::{ARENA_LOWEST, CELL, GAP_CLASSES, HEADER_ADDRESS, Header, Job, MAGIC, VERSION, Writes};
use crate::{clock, fail, panicked, power_off, ram_mib, reboot, second};

/// Steps between two looks at the TSC.
const STEPS_A_LOOK: u64 = 256;
/// Bytes of a page, whatever the page tables say: what a VMM copies at least.
const PAGE: u64 = 4096;
/// TSC ticks between two looks at the serial line if `poll=` says nothing, some 20 ms: a look may be an exit to the VMM.
pub const TICKS_A_POLL: u64 = 1 << 26;

/// `job=write`, `job=sweep`, `job=pagefill`, `job=time`.
pub fn memory(name: &str, boot: &Boot) -> ! {
    let line = boot.command_line();
    let get = |name, default| number(line, name, default).unwrap_or_else(|| fail(format_args!("{name}= is no number")));
    let job = match name {
        "write" => Job::Write,
        "sweep" => Job::Sweep,
        "pagefill" => Job::PageFill,
        _ => Job::Time,
    };
    let (seed, mib) = (get("seed", 1), get("mib", 16));
    let (period, poll) = (get("period", 0), get("poll", TICKS_A_POLL));
    let Ok(rest) = u32::try_from(get("rest", 0)) else { fail(format_args!("rest= is more than four seconds")) };
    let burst = get("burst", if period == 0 { STEPS_A_LOOK } else { 1 });
    let (bytes, hot) = match job {
        Job::Write | Job::Sweep => (mib << 20, get("hot", mib) << 20),
        Job::PageFill => (mib << 20, 0),
        Job::Time | Job::Disks | Job::Net | Job::Other => (0, 0),
    };
    if hot > bytes {
        fail(format_args!("hot= is more than mib="));
    }
    let high = parameter(line, "at") == Some("high");
    let more = get("more", 0) << 20;
    // Once the second CPU runs, what the VMM left may be gone.
    let (cpus, reads) = (get("cpus", 1), parameter(line, "how") == Some("read"));
    let (Some(arena), Some(elsewhere)) = (place(boot, bytes, high), place(boot, more, !high)) else {
        fail(format_args!("{mib} MiB are not free in one piece of RAM"));
    };
    if more > 0 && arena < elsewhere + more && elsewhere < arena + bytes {
        fail(format_args!("more= and the arena are in one piece of RAM"));
    }
    let mut account = Account::open(
        poll,
        Header {
            magic: MAGIC,
            version: VERSION,
            job: job as u32,
            seed,
            arena,
            arena_bytes: bytes,
            hot_bytes: hot,
            ..Header::EMPTY
        },
    );
    let (protocol, ram) = (boot.protocol(), ram_mib(boot));
    say!("ready job={name} protocol={protocol} ram_mib={ram} seed={seed} arena={arena:#x} bytes={bytes} hot={hot}");
    account.more = (elsewhere, more);
    account.fill_more();
    let mut writes = Writes::new(seed, bytes / CELL, hot / CELL);
    if bytes > 0 {
        account.fill(&mut writes, bytes / CELL);
        if job == Job::Sweep && cpus > 1 {
            account.second = Some(second::sweep(arena, hot, reads));
        }
        say!("filled steps={}", writes.done());
        account.begin();
    }
    if job == Job::Sweep {
        account.sweep(hot, 0, reads)
    }
    if hot > 0 {
        account.rewrite(&mut writes, burst, period)
    }
    loop {
        account.look();
        if rest > 0 {
            halt(rest);
        }
    }
}

/// A piece of RAM for the arena: the lowest or the highest that is large enough.
pub fn place(boot: &Boot, bytes: u64, high: bool) -> Option<u64> {
    let mut best = None;
    for (address, length) in boot.ram() {
        let (start, end) = (address.max(ARENA_LOWEST), address + length);
        if end < start || end - start < bytes {
            continue;
        }
        let start = if high { (end - bytes) & !0xfff } else { start };
        if best.is_none_or(|other| if high { start > other } else { start < other }) {
            best = Some(start);
        }
    }
    best
}

/// The header in memory, and what is between two looks at the clock.
pub struct Account {
    header: *mut Header,
    arena: u64,
    /// Address and bytes of the RAM that is filled as well, and left alone then.
    more: (u64, u64),
    /// The second CPU's header, on the first if that works too.
    second: Option<*mut Header>,
    last_tsc: u64,
    last_poll: u64,
    /// TSC ticks between two looks at the serial line.
    poll: u64,
}

/// Reads and writes of one field, where and when they stand.
macro_rules! field {
    ($account:expr, $($name:tt)+) => {
        // SAFETY: the header is a page of our own, known by its address only; one CPU writes to it.
        unsafe { core::ptr::addr_of_mut!((*$account.header).$($name)+).read_volatile() }
    };
}
macro_rules! set_field {
    ($account:expr, $value:expr, $($name:tt)+) => {{
        let value = $value;
        // SAFETY: as above.
        unsafe { core::ptr::addr_of_mut!((*$account.header).$($name)+).write_volatile(value) }
    }};
}

impl Account {
    /// Fills the header in, its magic number last.
    pub fn open(poll: u64, header: Header) -> Self {
        let now = tsc();
        let (magic, arena) = (header.magic, header.arena);
        let account = Self {
            header: HEADER_ADDRESS as *mut Header,
            arena,
            more: (0, 0),
            second: None,
            last_tsc: now,
            last_poll: now,
            poll,
        };
        // SAFETY: as above.
        unsafe { account.header.write_volatile(Header { magic: [0; 8], first_tsc: now, last_tsc: now, ..header }) };
        set_field!(account, magic, magic);
        account
    }

    /// That of a CPU which looks at no serial line.
    pub fn of_second(header: *mut Header, arena: u64) -> Self {
        let now = tsc();
        Self { header, arena, more: (0, 0), second: None, last_tsc: now, last_poll: now, poll: u64::MAX }
    }

    /// One step: the value, then the count. Both are volatile: the compiler keeps their order, and the CPU does.
    #[inline(always)]
    pub fn step(&mut self, writes: &mut Writes) {
        let Some((cell, value)) = writes.next() else { return };
        // SAFETY: the arena is RAM that nobody else uses, and the sequence stays within it.
        unsafe { ((self.arena + cell * CELL) as *mut u64).write_volatile(value) };
        set_field!(self, writes.done(), steps);
    }

    /// The first `cells` steps.
    pub fn fill(&mut self, writes: &mut Writes, cells: u64) {
        while writes.done() < cells {
            for _ in 0..STEPS_A_LOOK.min(cells - writes.done()) {
                self.step(writes);
            }
            self.look();
        }
    }

    /// All further steps: `burst` of them, and rest until `period` ticks have passed since they began.
    fn rewrite(&mut self, writes: &mut Writes, burst: u64, period: u64) -> ! {
        loop {
            let begin = self.last_tsc;
            for _ in 0..burst {
                self.step(writes);
            }
            self.look();
            while self.last_tsc.wrapping_sub(begin) < period {
                self.look();
            }
        }
    }

    /// One unit of work after the other, from the hot page at `first` on: a word of the next hot page is written, or read, and the clock looked at.
    pub fn sweep(&mut self, hot: u64, first: u64, reads: bool) -> ! {
        if hot == 0 {
            fail(format_args!("a sweep needs hot="));
        }
        let (mut page, mut steps) = (first, field!(self, steps));
        loop {
            // Each round takes another word of the page, so that what is written is not what was there.
            let word = (self.arena + page + (steps & 0xff) * CELL) as *mut u64;
            // SAFETY: the arena is RAM that only our CPUs use, and the hot pages are its first.
            unsafe {
                if reads {
                    word.read_volatile();
                } else {
                    word.write_volatile(steps);
                }
            }
            steps += 1;
            set_field!(self, steps, steps);
            page += PAGE;
            if page >= hot {
                page = 0;
            }
            self.look();
        }
    }

    /// Fills what `more=` asks for.
    fn fill_more(&mut self) {
        let (start, bytes) = self.more;
        for at in (0..bytes).step_by(CELL as usize) {
            // SAFETY: RAM that nobody else uses.
            unsafe { ((start + at) as *mut u64).write_volatile(at | 1) };
        }
        self.begin();
    }

    /// Reads a word of every page that was filled; returns the bytes of these pages.
    fn read_all(&mut self) -> u64 {
        let arena = (self.arena, field!(self, arena_bytes));
        for (start, bytes) in [arena, self.more] {
            for page in (0..bytes).step_by(PAGE as usize) {
                // SAFETY: both are RAM.
                unsafe { ((start + page) as *const u64).read_volatile() };
            }
        }
        arena.1 + self.more.1
    }

    /// Begins to look at the clock: what has passed so far is not the machine's doing. A job that was asked goes on for a
    /// while before it is asked again: to say something takes it far longer than a step.
    fn begin(&mut self) {
        self.last_tsc = tsc();
        self.last_poll = self.last_tsc;
    }

    /// Looks at the clock and accounts for the time since the last look; now and then at the serial line too.
    pub fn look(&mut self) {
        if self.tick() {
            self.serve(Serial::get());
        }
    }

    /// Looks at the clock and accounts for the time since the last look. True if the serial line is to be looked at.
    pub fn tick(&mut self) -> bool {
        let now = tsc();
        let unit = field!(self, units) + 1;
        set_field!(self, unit, units);
        if now < self.last_tsc {
            set_field!(self, field!(self, backwards) + 1, backwards);
        } else {
            let gap = now - self.last_tsc;
            let class = (gap | 1).ilog2() as usize % GAP_CLASSES;
            set_field!(self, field!(self, gaps[class]) + 1, gaps[class]);
            if gap > field!(self, longest_gap) {
                set_field!(self, gap, longest_gap);
                set_field!(self, unit, longest_gap_unit);
            }
        }
        set_field!(self, now, last_tsc);
        self.last_tsc = now;
        let due = now.wrapping_sub(self.last_poll) >= self.poll;
        if due {
            self.last_poll = now;
        }
        due
    }

    /// So many steps are done.
    pub fn set_steps(&mut self, steps: u64) {
        set_field!(self, steps, steps);
    }

    /// The second CPU's account, if it works.
    fn second(&self) -> Option<Account> {
        self.second.map(|header| Account::of_second(header, self.arena))
    }

    /// Forgets the gaps seen so far.
    fn forget(&mut self) {
        set_field!(self, [0; GAP_CLASSES], gaps);
        set_field!(self, 0, longest_gap);
        set_field!(self, 0, longest_gap_unit);
        set_field!(self, 0, backwards);
    }

    /// What somebody asks on the serial line.
    pub fn serve(&mut self, asked: Option<u8>) {
        match asked {
            Some(b's') => {
                let (mut steps, mut units) = (field!(self, steps), field!(self, units));
                let (mut longest, mut unit) = (field!(self, longest_gap), field!(self, longest_gap_unit));
                let (mut backwards, tsc) = (field!(self, backwards), self.last_tsc);
                if let Some(second) = self.second() {
                    steps += field!(second, steps);
                    units += field!(second, units);
                    backwards += field!(second, backwards);
                    if field!(second, longest_gap) > longest {
                        (longest, unit) = (field!(second, longest_gap), field!(second, longest_gap_unit));
                    }
                }
                say!(
                    "status steps={steps} units={units} longest_gap={longest} longest_gap_unit={unit} backwards={backwards} tsc={tsc}"
                );
            }
            Some(b'r') => {
                self.forget();
                // It may be about to note a gap: one of its own work, not of the machine's doing.
                self.second().into_iter().for_each(|mut second| second.forget());
            }
            Some(b'a') => {
                let bytes = self.read_all();
                say!("read bytes={bytes}");
            }
            // Nothing more: each byte is several exits, which is most of what a restore takes.
            Some(b'p') => Serial::put(b'\n'),
            Some(b't') => {
                let (tsc, kvmclock) = clock::read();
                say!("time tsc={tsc} kvmclock={kvmclock}");
            }
            Some(b'q') => power_off(),
            Some(b'b') => reboot("acpi"),
            Some(b'c') => {
                say!("panic");
                panicked()
            }
            _ => return,
        }
        self.begin();
    }
}

/// `job=echo`
pub fn echo(boot: &Boot) -> ! {
    say!("ready job=echo protocol={} ram_mib={}", boot.protocol(), ram_mib(boot));
    loop {
        match Serial::get() {
            Some(4) => power_off(), // Ctrl-D
            Some(byte) => Serial::put(byte),
            None => core::hint::spin_loop(),
        }
    }
}
