//! Restored, run, checkpointed, killed, again and again: nothing wears off.

use ckvmm_tests::{config, network};

use crate::vm::{Count, Home, checkpoint, complaints};

const GENERATIONS: u32 = 20;

#[test]
fn twenty_generations_and_the_counter_never_goes_back() {
    network::enter_namespace_with_tap();
    let home = Home::new();
    let config = config::with_network(config::with_disk(config::linux("counter,fsync,kmsg")));
    let vm = home.boot(&config);
    let first = Count::next(&vm);
    let mut image = checkpoint(&vm);
    let mut at_least = first.count;
    vm.kill9();
    for generation in 1..=GENERATIONS {
        let vm = home.restore(&image, &format!("generation{generation}"), &[]);
        let next = Count::next(&vm);
        assert!(next.same_process(&first), "generation {generation}: {next:?}");
        assert!(next.count > at_least, "generation {generation}: {next:?} after {at_least}");
        // Ten lines of the counter are its second.
        let seen = vm.console.next("a second of counting", ckvmm_tests::LIMIT, |line| {
            Count::parse(line).filter(|count| count.count >= next.count + 10)
        });
        at_least = seen.count;
        image = checkpoint(&vm);
        let (console, _) = vm.kill9();
        assert!(complaints(&console.all()).is_empty(), "{:?}", complaints(&console.all()));
    }
}
