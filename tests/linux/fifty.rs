//! A guest under load takes checkpoints in a row, each as soon as the one before is durable; every one of them is
//! restored, and what the guest then has is compared with what it said before.
//!
//! The load, on two CPUs, churns the page cache and keeps records: a number, the sum of a chain that the host can work
//! out as well, and the digest of a file that it has just written. The newest record lies in memory, all of them lie on
//! the disk. Three accounts of one instant then have to agree in a restored guest, and with the host's:
//!
//! ```text
//! host     last record seen before the signal  <  first record after the restore  ≤  one more than last seen when durable
//! memory   the newest record: in the chain, its file as its digest says, the same as the guest printed before
//! disk     past the page cache: every record of the chain up to the newest, or to the one before it
//! ```

use std::{collections::BTreeMap, fs, path::PathBuf, time::Instant};

use ckvmm_tests::{LIMIT, config, console::value, process::Ckvmm};

use crate::vm::{Count, Home, checkpoint, complaints};

/// Checkpoints of a test, and of `make soak`.
const CHECKPOINTS: usize = 8;
const CHECKPOINTS_IN_SOAK: usize = 50;

/// What the guest runs, as commands of its job `exec`. It pauses in between: a guest that took all of an emulated CPU
/// would leave its checkpoints none, whose writer comes last.
const BALLAST: &str = "head -c 1048576 /dev/urandom >/dev/shm/ram";
const CHURN: &str = "cd /var/lib/ckvmm; \
    (while :; do head -c 524288 /dev/urandom >churn; cat churn >/dev/null; sleep 2; done) &";
const RECORDS: &str = "cd /var/lib/ckvmm; \
    (i=0 s=0; while :; do i=$((i + 1)); s=$(((s * 69069 + i) % 4294967296)); \
    f=file$((i % 8)); seq $i $((i + 1000)) >$f; h=$(md5sum <$f); r=$i:$s:${h%% *}; \
    echo $r >/dev/shm/new; mv /dev/shm/new /dev/shm/record; echo $r >>records; fsync records; \
    echo CKVMM record is=$r; sleep 1; done) & echo $! >/dev/shm/pid";
/// The records stop, so that nothing changes while they are compared, and the page cache is dropped, so that it is the
/// disk that answers.
const ASK: &str = "cd /var/lib/ckvmm; kill -STOP $(cat /dev/shm/pid); r=$(cat /dev/shm/record); \
    sync; echo 3 >/proc/sys/vm/drop_caches; n=${r%%:*}; \
    d=$(awk -F: '{ s = (s * 69069 + NR) % 4294967296; r = $0; if ($1 != NR || $2 != s) exit } END { print r }' records); \
    f=$(md5sum <file$((n % 8))); m=$(sha256sum </dev/shm/ram); \
    echo CKVMM asked memory=$r disk=$d file=${f%% *} ballast=${m%% *}";

/// What the guest recorded: a number, the sum of the chain up to it, the digest of its file.
#[derive(Debug, Clone, PartialEq)]
struct Record {
    number: u64,
    sum: u64,
    digest: String,
}

impl Record {
    fn parse(text: &str) -> Option<Record> {
        let (number, rest) = text.split_once(':')?;
        let (sum, digest) = rest.split_once(':')?;
        Some(Record { number: number.parse().ok()?, sum: sum.parse().ok()?, digest: digest.to_owned() })
    }

    /// One that the guest has just printed.
    fn printed(line: &str) -> Option<Record> {
        Record::parse(value(line.strip_prefix("CKVMM record ")?, "is")?)
    }

    /// The number of the last that a guest has printed.
    fn last(vm: &Ckvmm) -> u64 {
        vm.console.all().iter().rev().find_map(|line| Record::printed(line)).unwrap().number
    }

    fn is_of_the_chain(&self) -> bool {
        self.sum == (1..=self.number).fold(0, |sum, number| (sum * 69069 + number) % (1 << 32))
    }
}

/// What a guest answers that is asked.
#[derive(Debug)]
struct Answer {
    memory: Record,
    disk: Record,
    file: String,
    ballast: String,
}

impl Answer {
    fn of(vm: &mut Ckvmm) -> Answer {
        vm.type_line(ASK);
        vm.console.next("an answer", LIMIT, |line| {
            let line = line.strip_prefix("CKVMM asked ")?;
            let text = |key| value(line, key).map(str::to_owned);
            let record = |key| Record::parse(value(line, key)?);
            let (memory, disk) = (record("memory")?, record("disk")?);
            Some(Answer { memory, disk, file: text("file")?, ballast: text("ballast")? })
        })
    }

    /// Memory, disk and file tell the same.
    fn agrees(&self) {
        let Answer { memory, disk, file, .. } = self;
        assert!(memory.is_of_the_chain() && disk.is_of_the_chain(), "{self:?}");
        assert!(disk.number == memory.number || disk.number + 1 == memory.number, "{self:?}");
        assert_eq!(*file, memory.digest, "{self:?}");
    }
}

/// A checkpoint, and between which records it was made.
struct Taken {
    image: PathBuf,
    after: u64,
    before: u64,
}

/// What the guest said while it lived.
struct Said {
    first: Count,
    ballast: String,
    records: BTreeMap<u64, Record>,
}

/// Boots the guest and sets it to work.
fn busy(home: &Home) -> (Ckvmm, Count) {
    let mut config = config::with_disk(config::linux("counter,kmsg,exec"));
    config["vcpus"] = 2.into();
    config["memory"] = "96MiB".into();
    config["checkpoint"]["mode"] = "auto".into();
    let config = config::add_to_cmdline(config, "ckvmm.interval=0.5");
    let mut vm = home.boot(&config);
    vm.console.expect("CKVMM exec ready", LIMIT);
    for command in [BALLAST, CHURN, RECORDS] {
        vm.type_line(command);
        vm.console.expect("CKVMM exec n=", LIMIT);
    }
    vm.console.next("three records", LIMIT, |line| Record::printed(line).filter(|record| record.number == 3));
    let first = Count::last(&vm.console.all());
    (vm, first)
}

/// Makes the checkpoints, and ends the guest.
fn take(home: &Home, number: usize) -> (Vec<Taken>, Said) {
    let (mut vm, first) = busy(home);
    let mut taken = Vec::new();
    for _ in 0..number {
        let after = Record::last(&vm);
        let image = checkpoint(&vm);
        taken.push(Taken { image, after, before: Record::last(&vm) + 1 });
    }
    let answer = Answer::of(&mut vm);
    answer.agrees();
    let (console, messages) = vm.kill9();
    let lines = console.all();
    assert!(complaints(&lines).is_empty(), "{:?}", complaints(&lines));
    assert!(messages.all().iter().all(|line| line.starts_with("ckvmm: checkpoint ")), "{:#?}", messages.all());
    let records = lines.iter().filter_map(|line| Record::printed(line)).map(|record| (record.number, record));
    (taken, Said { first, ballast: answer.ballast, records: records.collect() })
}

/// Restores one, and compares; returns the number of the guest's first record.
fn restore(home: &Home, Taken { image, after, before }: &Taken, said: &Said) -> u64 {
    let name = image.display();
    let mut vm = home.restore(image, "restored", &[]);
    let first = vm.console.next("a record", LIMIT, Record::printed);
    assert!(first.number > *after && first.number <= *before, "{name}: {after} < {first:?} ≤ {before}");
    let answer = Answer::of(&mut vm);
    answer.agrees();
    assert!(answer.memory.number >= first.number, "{name}: {answer:?} after {first:?}");
    assert_eq!(answer.ballast, said.ballast, "{name}: memory that nobody wrote to is another");
    // What a restored guest does anew it does as it was done the first time.
    for record in [&first, &answer.memory, &answer.disk] {
        assert!(said.records.get(&record.number).is_none_or(|before| before == record), "{name}: {record:?}");
    }
    assert!(Count::next(&vm).same_process(&said.first), "{name}: another guest");
    let (console, _) = vm.kill9();
    assert!(complaints(&console.all()).is_empty(), "{name}: {:?}", complaints(&console.all()));
    fs::remove_dir_all(home.path().join("restored")).unwrap();
    first.number
}

fn in_a_row(number: usize) {
    let home = Home::new();
    let begun = Instant::now();
    let (taken, said) = take(&home, number);
    let made = begun.elapsed();
    assert_eq!(taken.last().unwrap().image, home.checkpoint(number as u32), "all of them, and no others");
    let mut least = 0;
    for one in &taken {
        let first = restore(&home, one, &said);
        assert!(first >= least, "{}: record {first} after {least}", one.image.display());
        least = first;
    }
    let (restored, records) = (begun.elapsed() - made, said.records.len());
    eprintln!("{number} checkpoints of {records} records took {made:.1?}, and to restore {restored:.1?}");
}

#[test]
fn checkpoints_in_a_row_under_load_are_each_of_their_instant() {
    in_a_row(CHECKPOINTS);
}

#[test]
#[ignore = "make soak"]
fn fifty_checkpoints_in_a_row_under_load_are_each_of_their_instant() {
    in_a_row(CHECKPOINTS_IN_SOAK);
}
