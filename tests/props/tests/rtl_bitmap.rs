//! Bitmaps against a list of booleans: what is set and clear, where so many are found from a hint on, which runs there are, forwards,
//! backwards and the longest. Bits behind the map's size stay as they are, and aren't looked at.

use kernel::rtl::bitmap::{Bitmap, KBitmap, Run};
use proptest::prelude::*;

const STEPS: usize = if cfg!(miri) { 40 } else { 300 };
const CASES: u32 = if cfg!(miri) { 2 } else { 60 };

#[derive(Clone, Copy, Debug)]
enum Step {
    Set(u32, u32),
    Clear(u32, u32),
    SetAll,
    ClearAll,
    FindClear { count: u32, hint: u32, take: bool },
    FindSet { count: u32, hint: u32, take: bool },
    Look(u32, u32),
    Runs(u32),
}

fn steps() -> impl Strategy<Value = Step> {
    let (place, count) = (0..140_u32, prop_oneof![3 => 0..9_u32, 1 => 0..140_u32]);
    let find = (count.clone(), place.clone(), any::<bool>());
    prop_oneof![
        4 => (place.clone(), count.clone()).prop_map(|(first, count)| Step::Set(first, count)),
        4 => (place.clone(), count.clone()).prop_map(|(first, count)| Step::Clear(first, count)),
        1 => Just(Step::SetAll),
        1 => Just(Step::ClearAll),
        4 => find.clone().prop_map(|(count, hint, take)| Step::FindClear { count, hint, take }),
        2 => find.prop_map(|(count, hint, take)| Step::FindSet { count, hint, take }),
        2 => (place.clone(), count).prop_map(|(first, count)| Step::Look(first, count)),
        2 => place.prop_map(Step::Runs),
    ]
}

/// The bits, and none more.
struct Model(Vec<bool>);

impl Model {
    fn range(&self, first: u32, count: u32) -> Option<&[bool]> {
        self.0.get(first as usize..(first + count) as usize)
    }

    fn write(&mut self, first: u32, count: u32, value: bool) {
        if let Some(bits) = self.0.get_mut(first as usize..(first + count) as usize) {
            bits.fill(value);
        }
    }

    fn all(&self, first: u32, count: u32, value: bool) -> bool {
        count > 0 && self.range(first, count).is_some_and(|bits| bits.iter().all(|&bit| bit == value))
    }

    fn find(&self, count: u32, hint: u32, value: bool) -> Option<u32> {
        let size = self.0.len() as u32;
        let hint = if hint < size { hint } else { 0 };
        if count == 0 {
            return Some(hint);
        }
        (hint..size).chain(0..hint).find(|&first| self.all(first, count, value))
    }

    /// All clear runs.
    fn runs(&self) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for (bit, _) in self.0.iter().enumerate().filter(|(_, bit)| !**bit) {
            match runs.last_mut() {
                Some(run) if run.first + run.count == bit as u32 => run.count += 1,
                _ => runs.push(Run { first: bit as u32, count: 1 }),
            }
        }
        runs
    }

    fn next_run(&self, from: u32) -> Option<Run> {
        let cut = self.runs().into_iter().filter(|run| run.first + run.count > from);
        let mut cut = cut.map(|run| {
            let first = run.first.max(from);
            Run { first, count: run.first + run.count - first }
        });
        cut.next()
    }

    fn last_run(&self, from: u32) -> Option<Run> {
        let cut = self.runs().into_iter().filter(|run| run.first <= from);
        cut.map(|run| Run { count: run.count.min(from - run.first + 1), ..run }).next_back()
    }
}

fn step(map: &mut Bitmap<'_>, model: &mut Model, step: Step) {
    match step {
        Step::Set(first, count) => {
            map.set(first, count);
            model.write(first, count, true);
        }
        Step::Clear(first, count) => {
            map.clear(first, count);
            model.write(first, count, false);
        }
        Step::SetAll => {
            map.set_all();
            model.0.fill(true);
        }
        Step::ClearAll => {
            map.clear_all();
            model.0.fill(false);
        }
        Step::FindClear { count, hint, take } => {
            let wanted = model.find(count, hint, false);
            let found = if take { map.find_clear_and_set(count, hint) } else { map.find_clear(count, hint) };
            assert_eq!(found, wanted, "{count} clear from {hint}");
            if let (true, Some(first)) = (take, wanted) {
                model.write(first, count, true);
            }
        }
        Step::FindSet { count, hint, take } => {
            let wanted = model.find(count, hint, true);
            let found = if take { map.find_set_and_clear(count, hint) } else { map.find_set(count, hint) };
            assert_eq!(found, wanted, "{count} set from {hint}");
            if let (true, Some(first)) = (take, wanted) {
                model.write(first, count, false);
            }
        }
        Step::Look(first, count) => {
            assert_eq!(map.are_set(first, count), model.all(first, count, true));
            assert_eq!(map.are_clear(first, count), model.all(first, count, false));
            assert_eq!(map.test(first), model.all(first, 1, true));
        }
        Step::Runs(from) => runs(map, model, from),
    }
}

fn runs(map: &Bitmap<'_>, model: &Model, from: u32) {
    assert_eq!(map.next_clear_run(from), model.next_run(from), "forwards from {from}");
    assert_eq!(map.last_clear_run(from), model.last_run(from), "backwards from {from}");
    let mut all = model.runs();
    for room in [0, 1, 3, 80] {
        let mut found = vec![Run::default(); room];
        let count = map.clear_runs(&mut found, false);
        assert_eq!(found[..count], all[..all.len().min(room)]);
    }
    // Stable, so of those that are as long the first ones come first.
    all.sort_by_key(|run| std::cmp::Reverse(run.count));
    assert_eq!(map.longest_clear_run(), all.first().copied());
    for room in [0, 1, 3, 80] {
        let mut found = vec![Run::default(); room];
        let count = map.clear_runs(&mut found, true);
        assert_eq!(found[..count], all[..all.len().min(room)], "the longest");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn bits_are_as_in_a_list(size in 0..131_u32, steps in prop::collection::vec(steps(), STEPS)) {
        let mut words = [0xA5A5_A5A5_u32; 6];
        let mut model = Model((0..size).map(|bit| words[bit as usize / 32] >> (bit % 32) & 1 != 0).collect());
        let mut map = Bitmap::new(&mut words, size).expect("room");
        for &it in &steps {
            step(&mut map, &mut model, it);
            let set = model.0.iter().filter(|bit| **bit).count() as u32;
            assert_eq!((map.count_set(), map.count_clear()), (set, size - set));
        }
        for bit in 0..6 * 32 {
            let is_set = words[bit as usize / 32] >> (bit % 32) & 1 != 0;
            let wanted = model.0.get(bit as usize).copied().unwrap_or(0xA5A5_A5A5_u32 >> (bit % 32) & 1 != 0);
            assert_eq!(is_set, wanted, "bit {bit}");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut words = [0_u32; 2];
    assert!(Bitmap::new(&mut words, 65).is_none());
    let mut map = Bitmap::new(&mut words, 64).expect("room");
    map.set(60, u32::MAX);
    map.set(u32::MAX, 2);
    assert_eq!(map.count_set(), 0);
    assert!(!map.are_clear(60, 5) && !map.are_clear(0, 0) && map.are_clear(60, 4));
}

#[test]
fn nts_structure_is_viewed() {
    let mut words = [0_u32; 2];
    let mut raw = KBitmap { size: 40, buffer: words.as_mut_ptr() };
    // SAFETY: the array, which nobody else uses meanwhile.
    unsafe { raw.view() }.expect("somewhere").set(30, 10);
    assert_eq!(words, [0xC000_0000, 0xFF]);
    let mut nowhere = KBitmap { size: 1, buffer: std::ptr::null_mut() };
    // SAFETY: null.
    assert!(unsafe { nowhere.view() }.is_err());
}
