//! What is learnt of kernels that were timed.

use accelpool_shim::estimate::{Estimates, LONGEST_US, TIMED_ONE_IN};

#[test]
fn the_second_launch_is_timed_and_then_one_in_some() {
    let estimates = Estimates::new();
    assert!(!estimates.is_due(7, 16, u32::MAX), "the first launch loads the kernel");
    assert_eq!(estimates.estimate_us(7, 16), None, "seen is not timed");
    assert!(estimates.is_due(7, 16, 0));
    estimates.learn(7, 16, 400);
    assert_eq!(estimates.estimate_us(7, 16), Some(400));
    assert!(!estimates.is_due(7, 16, TIMED_ONE_IN - 1));
    assert!(estimates.is_due(7, 16, TIMED_ONE_IN));
}

#[test]
fn a_mean_follows_and_a_name_can_be_given_again() {
    let estimates = Estimates::new();
    for _ in 0..40 {
        estimates.learn(7, 16, 400);
    }
    for _ in 0..40 {
        estimates.learn(7, 31, 1000);
    }
    let mean = estimates.estimate_us(7, 20).expect("grids of one size are taken together");
    assert!((990..=1010).contains(&mean), "{mean}");
    assert_eq!(estimates.estimate_us(7, 32), None, "twice as large");
    assert_eq!(estimates.estimate_us(8, 16), None, "another one");
    estimates.learn(9, 0, u64::MAX);
    assert_eq!(estimates.estimate_us(9, 0), Some(LONGEST_US));
    estimates.forget(9, 0);
    assert_eq!(estimates.estimate_us(9, 0), None);
}
