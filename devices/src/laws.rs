//! The laws that every device with a state obeys, whatever it is. [`device_laws!`] makes them tests of a device.
//!
//! 1. Saving changes nothing, and a device that a state is restored into saves the same state.
//! 2. Whatever happens to a device, restoring undoes it.
//! 3. A state survives its encoding in an image.
//! 4. A state of a device of another shape, or of none, is an error that says so, and the device still works.

use std::fmt::Debug;

use ckvmm_snapshot::{Saved, StateMap};

use crate::Result;

/// A device as the laws see it.
pub(crate) trait Subject: Sized {
    /// Its state, and in a test machine what of it is in guest RAM.
    type State: Clone + Debug + PartialEq;

    /// How many different things can happen to it: arguments of `mutate`.
    const MUTATIONS: usize;

    /// A device, always of the same shape.
    fn new() -> Self;
    fn save(&self) -> Result<Self::State>;
    fn restore(&mut self, state: Self::State) -> Result<()>;
    /// Something happens to it that shows in its state. Called with 0, 1, 2 … on a new device.
    fn mutate(&mut self, what: usize);
    /// The state after encoding and decoding.
    fn recode(state: Self::State) -> Self::State;
    /// Turns a good state into ones that do not fit, each with words of the error that they must give.
    fn misfits(state: &Self::State) -> Vec<(Self::State, &'static str)>;
    /// Panics unless the device works as a new one does.
    fn works_from_the_start(&mut self);
}

/// Encodes a state as an image does, and decodes it.
pub(crate) fn recode<S: Saved>(state: &S) -> S {
    let mut map = StateMap::new();
    map.put("device", state).unwrap();
    let mut map = StateMap::decode(&map.encode()).unwrap();
    let state = map.take("device").unwrap();
    map.finish().unwrap();
    state
}

/// Each stage of a device's life, by how many mutations it has seen.
fn stages<S: Subject>() -> impl Iterator<Item = S> {
    (0..=S::MUTATIONS).map(|count| {
        let mut subject = S::new();
        (0..count).for_each(|what| subject.mutate(what));
        subject
    })
}

pub(crate) fn saving_changes_nothing_and_restoring_is_faithful<S: Subject>() {
    for subject in stages::<S>() {
        let saved = subject.save().unwrap();
        assert_eq!(subject.save().unwrap(), saved, "saving changed it");
        let mut other = S::new();
        other.restore(saved.clone()).unwrap();
        assert_eq!(other.save().unwrap(), saved);
        assert_eq!(S::recode(saved.clone()), saved, "encoding changed it");
    }
}

pub(crate) fn restoring_undoes_whatever_happened<S: Subject>() {
    for (count, mut subject) in stages::<S>().enumerate() {
        let saved = subject.save().unwrap();
        for last in count..S::MUTATIONS {
            (count..=last).for_each(|what| subject.mutate(what));
            if last == count {
                assert_ne!(subject.save().unwrap(), saved, "mutation {last} does not show");
            }
            subject.restore(saved.clone()).unwrap();
            assert_eq!(subject.save().unwrap(), saved, "mutations {count} to {last} are not undone");
        }
    }
}

pub(crate) fn a_state_that_does_not_fit_is_an_error_that_says_so<S: Subject>() {
    for subject in stages::<S>() {
        for (misfit, words) in S::misfits(&subject.save().unwrap()) {
            let mut target = S::new();
            let error = target.restore(misfit.clone()).expect_err(words).to_string();
            assert!(error.contains(words), "{error:?} does not speak of {words:?}");
            target.works_from_the_start();
        }
    }
}

/// Makes the laws tests of a [`Subject`].
macro_rules! device_laws {
    ($subject:ty) => {
        mod laws {
            use super::*;

            #[test]
            fn saving_changes_nothing_and_restoring_is_faithful() {
                $crate::laws::saving_changes_nothing_and_restoring_is_faithful::<$subject>();
            }

            #[test]
            fn restoring_undoes_whatever_happened() {
                $crate::laws::restoring_undoes_whatever_happened::<$subject>();
            }

            #[test]
            fn a_state_that_does_not_fit_is_an_error_that_says_so() {
                $crate::laws::a_state_that_does_not_fit_is_an_error_that_says_so::<$subject>();
            }
        }
    };
}
pub(crate) use device_laws;
