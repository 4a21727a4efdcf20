//! Tables against a model: the checkpoint that wrote each page.

use proptest::prelude::*;

use super::*;

const CHUNKS: usize = 3;
/// The last chunk is a short one.
const FILE_BYTES: u64 = 2 * CHUNK_BYTES + 5 * PAGE_BYTES;

fn id(generation: usize) -> Uuid {
    Uuid::from_u128(generation as u128 + 1)
}

/// Who wrote each page, as the table of the checkpoint `own` says.
fn writers(layers: &Layers, own: Uuid) -> Vec<Uuid> {
    let mut writers = Vec::new();
    for (index, range) in crate::chunk_map::chunk_ranges(FILE_BYTES).enumerate() {
        let mut end = range.start;
        for (layer, run) in layers.runs(range.clone()) {
            assert_eq!(run.start, end, "runs follow each other");
            end = run.end;
            let writer = if layer == 0 { own } else { layers.ids()[layer - 1] };
            writers.extend(std::iter::repeat_n(writer, ((run.end - run.start) / PAGE_BYTES) as usize));
            assert!(layers.holds(index, layer as u8));
        }
        assert_eq!(end, range.end);
    }
    writers
}

fn changed() -> impl Strategy<Value = Changed> {
    let pages = prop::collection::vec(0..PAGES, 0..20).prop_map(|pages| {
        let mut set = PageSet::default();
        pages.into_iter().for_each(|page| set.insert(page));
        Changed::Pages(set)
    });
    prop_oneof![Just(Changed::Nothing), Just(Changed::All), pages]
}

proptest! {
    /// Each page is of the checkpoint that last wrote it, whatever the chain, and no layer is kept that holds none.
    #[test]
    fn each_page_is_of_whoever_wrote_it_last(chain in prop::collection::vec(prop::array::uniform3(changed()), 1..12)) {
        let pages = (FILE_BYTES / PAGE_BYTES) as usize;
        let mut layers = Layers::single();
        let mut expected = vec![id(0); pages];
        for (generation, chunks) in (1..).zip(chain) {
            let mut rebase = Rebase::new(&layers, id(generation - 1));
            for (chunk, changed) in chunks.iter().enumerate() {
                rebase.push(changed);
                let first = chunk * PAGES;
                for (page, writer) in expected.iter_mut().enumerate().skip(first).take(PAGES) {
                    let is_new = match changed {
                        Changed::All => true,
                        Changed::Nothing => false,
                        Changed::Pages(set) => set.contains(page - first),
                    };
                    if is_new {
                        *writer = id(generation);
                    }
                }
            }
            layers = rebase.finish();
            prop_assert_eq!(writers(&layers, id(generation)), expected.clone());
            if !layers.is_single() {
                let bytes = layers.encode(FILE_BYTES);
                prop_assert!(bytes.len() as u64 <= Layers::bytes_max(FILE_BYTES));
                prop_assert_eq!(&Layers::parse(&bytes, FILE_BYTES).expect("parses"), &layers);
            }
        }
    }

    /// Whatever a file holds, it is a table that names layers it lists, or an error.
    #[test]
    fn arbitrary_bytes_are_refused_or_sound(at in 0..2000_usize, byte: u8, cut in 0..2000_usize) {
        let mut bytes = mixed().encode(FILE_BYTES);
        if let Some(place) = bytes.get_mut(at) {
            *place = byte;
        }
        for bytes in [&bytes[..], &bytes[..cut.min(bytes.len())]] {
            if let Ok(layers) = Layers::parse(bytes, FILE_BYTES) {
                writers(&layers, id(99));
            }
        }
    }
}

/// A table with a layer beside its own, one of its chunks mixed.
fn mixed() -> Layers {
    let base = Layers { ids: vec![id(0)], chunks: vec![Holder::One(1); CHUNKS] };
    let mut rebase = Rebase::new(&base, id(1));
    let mut set = PageSet::default();
    set.insert(7);
    [Changed::Nothing, Changed::Pages(set), Changed::All].iter().for_each(|changed| rebase.push(changed));
    rebase.finish()
}

#[test]
fn a_table_that_lies_is_refused() {
    let refused = |bytes: &[u8]| Layers::parse(bytes, FILE_BYTES).expect_err("it lies");
    let good = mixed().encode(FILE_BYTES);
    assert!(Layers::parse(&good, FILE_BYTES + PAGE_BYTES).is_err(), "of another file");
    for (at, byte, why) in
        [(0, b'x', "magic"), (24, 0, "no layers"), (24, 40, "too many"), (32, 2, "more mixed chunks")]
    {
        let mut bytes = good.clone();
        bytes[at] = byte;
        assert!(matches!(refused(&bytes), Flaw::Broken(_)), "{why}");
    }
    let mut newer = good.clone();
    newer[8] = 7;
    assert_eq!(refused(&newer), Flaw::Version { found: 7, reads: crate::error::Versions::only(1) });
    let kinds = HEADER_BYTES as usize + 16 * mixed().ids().len();
    let mut unknown = good.clone();
    unknown[kinds] = 9;
    assert_eq!(refused(&unknown), Flaw::broken("it names the layer 9 of 1"));
    let mut unused = good;
    unused[kinds] = 0;
    let table = unused.len() - PAGES;
    unused[table..].fill(0);
    assert_eq!(refused(&unused), Flaw::broken("it lists a layer that holds nothing"));
}

#[test]
fn the_layer_with_the_fewest_pages_is_folded_when_there_is_no_more_room() {
    let few = Layers { ids: (0..3).map(id).collect(), chunks: vec![Holder::One(1), Holder::One(2), Holder::One(3)] };
    assert_eq!(few.to_fold(CHUNKS), None);
    let ids: Vec<Uuid> = (0..LAYERS_MAX).map(id).collect();
    let mut chunks: Vec<Holder> = (1..=LAYERS_MAX).map(|layer| Holder::One(layer as u8)).collect();
    let mut pages = [5; PAGES];
    pages[..2].fill(0);
    chunks[4] = Holder::Mixed(Box::new(pages));
    let full = Layers { ids, chunks };
    assert_eq!(full.to_fold(LAYERS_MAX), Some(0), "two pages only");
}
