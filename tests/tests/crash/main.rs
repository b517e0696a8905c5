//! The daemon is killed at every step of a day's work, and once more at every step of the
//! recovery; nothing is granted twice, nothing is left behind, and every retry ends well.
#![expect(clippy::unwrap_used, reason = "a test ends where something is missing")]

mod day;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use accelpool_proto::node::PrepareClaimRequest;
use accelpool_tests::{
    Client, Daemon, Faults, Home, page,
    requests::{claim, named},
    rules::Picture,
    wait_for,
};
use tonic::Code;

use crate::day::{CUT, CUT_TWICE, Call, Known, TROUBLE, day, work};

/// How many daemons are tormented at a time.
const THREADS: usize = 4;

/// The fault points that were passed since the last look, each with how often.
fn passed(home: &Home) -> Vec<(String, usize)> {
    let text = fs::read_to_string(home.trace()).expect("a debug build notes its fault points");
    fs::remove_file(home.trace()).unwrap();
    let mut counts = BTreeMap::new();
    let counted = text.lines().map(|point| {
        let count = counts.entry(point.to_owned()).or_insert(0);
        *count += 1;
        (point.to_owned(), *count)
    });
    counted.collect()
}

fn new_home() -> Home {
    let home = Home::with_turns("dgx-h100");
    home.script(TROUBLE);
    home
}

/// Runs `check` on each of `cases`, a few at a time.
fn each<T: Sync>(cases: &[T], check: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    check(case);
                }
            });
        }
    });
}

/// What a day passes when nobody dies.
fn points_of_a_day() -> Vec<(String, usize)> {
    let home = new_home();
    let daemon = home.try_start(&Faults::trace()).unwrap();
    let mut known = Known::default();
    let client = daemon.client();
    assert_eq!(work(&mut known, &client, &day()), day().len());
    finish(&mut known, &home, &client);
    let points = passed(&home);
    let names: BTreeSet<_> = points.iter().map(|(point, _)| point.as_str()).collect();
    let steps = ["create_partition", "destroy_partition", "write_spec", "remove_spec"];
    let expected = ["commit", "arm_turns", "disarm_turns"].into_iter().chain(steps);
    for point in expected {
        assert!(names.contains(&*format!("{point}.before")), "{point} is not passed");
        assert!(names.contains(&*format!("{point}.after")), "{point} is not passed");
    }
    points
}

/// Gives everything back; nothing is left.
fn finish(known: &mut Known, home: &Home, client: &Client) {
    for call in day() {
        if let Call::Prepare(PrepareClaimRequest { claim, .. }) = call {
            // What the hardware refused once it does the second time.
            if client.release(&claim).is_err() {
                client.release(&claim).unwrap();
            }
            known.promised.remove(&claim);
            known.doubtful.remove(&claim);
        }
    }
    let picture = Picture::take(home, client);
    assert_eq!(picture.leases, []);
    assert_eq!(picture.hardware, []);
    assert_eq!(picture.specs, BTreeMap::new());
    assert_eq!(picture.turns, BTreeSet::new());
}

/// Checks the node after a restart, then repeats what was cut short and ends the day.
fn go_on(home: &Home, daemon: &Daemon, mut known: Known, rest: &[Call], when: &str) {
    let client = daemon.client();
    known.check(home, &client, when);
    // Whoever was answered asks again and hears the same.
    for (claim, promised) in &known.promised {
        let repeated = day().into_iter().find_map(|call| match call {
            Call::Prepare(request) if request.claim == *claim => Some(request),
            Call::Prepare(_) | Call::Release(_) | Call::Taint | Call::Untaint => None,
        });
        assert_eq!(&client.prepare(repeated.unwrap()).unwrap(), promised, "{when}");
    }
    assert_eq!(work(&mut known, &client, rest), rest.len(), "{when}");
    finish(&mut known, home, &client);
}

#[test]
fn killed_at_every_step_nothing_is_lost_and_nothing_is_left() {
    let points = points_of_a_day();
    each(&points, |(point, nth)| {
        let when = format!("killed at {point}:{nth}");
        let home = new_home();
        let mut daemon = home.try_start(&Faults::kill(point, *nth)).unwrap();
        let mut known = Known::default();
        let day = day();
        let stopped_at = work(&mut known, &daemon.client(), &day);
        // The last step of the day may kill it after its caller was answered.
        if stopped_at == day.len() {
            finish_or_die(&mut known, &daemon.client());
        }
        let status = daemon.wait();
        assert!(!status.success(), "{when}: {status}");
        go_on(&home, &home.start(), known, &day[stopped_at.min(day.len())..], &when);
    });
}

/// As [`finish`] of a daemon that dies on the way.
fn finish_or_die(known: &mut Known, client: &Client) {
    let claims: Vec<_> = known.promised.keys().cloned().chain(known.doubtful.clone()).collect();
    for claim in claims {
        for _ in 0..2 {
            let released = client.release(&claim);
            known.promised.remove(&claim);
            match released {
                Ok(_) => {
                    known.doubtful.remove(&claim);
                    break;
                }
                Err(status) => {
                    known.doubtful.insert(claim.clone());
                    if page(&status).is_none() {
                        return;
                    }
                }
            }
        }
    }
}

/// The steps of a recovery, in the order in which they are passed. Unfinished leases go first,
/// then the specs of the others that are not there any more.
const RECOVERY: [&str; 8] = [
    "remove_spec.before",
    "remove_spec.after",
    "destroy_partition.before",
    "destroy_partition.after",
    "commit.before",
    "commit.after",
    "write_spec.before",
    "write_spec.after",
];

#[test]
fn killed_at_every_step_of_the_recovery_too() {
    // Two of the day's calls leave the most to recover: a claim of two partitions that is half
    // prepared, and one that is half released.
    let points = points_of_a_day();
    let deep = |(point, _): &(String, usize)| point.contains("partition") || point.contains("spec");
    // Every third: each case starts the daemon nine times.
    let cases: Vec<_> = points.iter().filter(|point| deep(point)).step_by(3).collect();
    let reached: Mutex<BTreeSet<&str>> = Mutex::default();
    each(&cases, |(point, nth)| {
        let home = new_home();
        let mut daemon = home.try_start(&Faults::kill(point, *nth)).unwrap();
        let mut known = Known::default();
        let day = day();
        let stopped_at = work(&mut known, &daemon.client(), &day);
        if stopped_at == day.len() {
            finish_or_die(&mut known, &daemon.client());
        }
        assert!(!daemon.wait().success());
        for again in RECOVERY {
            // As a boot leaves it: the folder is in memory.
            fs::remove_dir_all(home.cdi()).unwrap();
            match home.try_start(&Faults::kill(again, 1)) {
                // It has nothing to do at that step.
                Ok(daemon) => daemon.kill(),
                Err(_) => drop(reached.lock().unwrap().insert(again)),
            }
        }
        let when = format!("killed at {point}:{nth}, and all through the recovery");
        go_on(&home, &home.start(), known, &day[stopped_at.min(day.len())..], &when);
    });
    let reached = reached.into_inner().unwrap();
    assert_eq!(reached, BTreeSet::from(RECOVERY));
}

/// After a power failure the hardware has forgotten its partitions, which are made anew.
#[test]
fn killed_while_partitions_are_made_anew() {
    let home = Home::new("dgx-h100");
    let parts = vec![
        named("left", &format!("{CUT_TWICE}-mig-3g-40gb-0")),
        named("right", &format!("{CUT_TWICE}-mig-3g-40gb-4")),
    ];
    let request = claim("twice", parts);
    let daemon = home.start();
    let lease = daemon.client().prepare(request.clone()).unwrap();
    daemon.kill();
    fs::remove_file(home.sim().join("state.json")).unwrap();
    for nth in 1..=2 {
        for point in ["create_partition.before", "create_partition.after"] {
            // The second time there is one partition less to make.
            let ended = home.try_start(&Faults::kill(point, 1));
            assert!(ended.is_err(), "{point} is passed, {nth}");
        }
    }
    let daemon = home.start();
    let picture = Picture::take(&home, &daemon.client());
    assert_eq!(picture.faults(), Vec::<String>::new());
    assert_eq!(picture.leases, std::slice::from_ref(&lease));
    assert_eq!(daemon.client().prepare(request).unwrap(), lease);
}

/// What cannot be undone stays on record, and is held, until it can.
#[test]
fn a_clean_up_that_fails_is_tried_again() {
    let home = Home::new("dgx-h100");
    home.script(
        "[[call]]\nid = \"stuck\"\nmethod = \"destroy_partition\"\nat = \"half-way\"\n\
         error = \"failed\"\n",
    );
    let request = claim("a", vec![named("part", &format!("{CUT}-mig-1g-10gb-4"))]);
    let mut daemon = home.try_start(&Faults::kill("create_partition.after", 1)).unwrap();
    daemon.client().prepare(request.clone()).unwrap_err();
    daemon.wait();

    let daemon = home.start();
    let client = daemon.client();
    let lease = client.claims().unwrap().remove(0);
    assert_eq!(lease.state, "preparing");
    assert!(lease.trouble.starts_with("failed to destroy partition"), "{}", lease.trouble);
    let busy = client.prepare(request.clone()).unwrap_err();
    assert_eq!((busy.code(), page(&busy)), (Code::Aborted, Some("AP0111")));
    let held = client.prepare(claim("b", vec![named("gpu", CUT)])).unwrap_err();
    assert_eq!((held.code(), page(&held)), (Code::FailedPrecondition, Some("AP0103")));
    daemon.kill();

    let daemon = home.start();
    let picture = Picture::take(&home, &daemon.client());
    assert_eq!((picture.faults(), picture.leases, picture.hardware), (vec![], vec![], vec![]));
    daemon.client().prepare(request).unwrap();
}

/// The daemon dies while the vendor's library is in the middle of a change, or has made it and
/// has not answered.
#[test]
fn killed_while_the_hardware_changes() {
    let cases = ["before", "half-way", "after"];
    each(&cases, |at| {
        let home = Home::new("dgx-h100");
        let script = |method: &str| {
            format!(
                "[[call]]\nid = \"{method}\"\nmethod = \"{method}\"\nat = \"{at}\"\nhang = true\n"
            )
        };
        home.script(&script("create_partition"));
        let request = claim("a", vec![named("part", &format!("{CUT}-mig-1g-10gb-4"))]);
        let counted = |method: &str| {
            let state = fs::read_to_string(home.sim().join("state.json")).ok()?;
            let state: serde_json::Value = serde_json::from_str(&state).ok()?;
            (state["calls"][method] == 1).then_some(())
        };
        let in_hand = |method: &str, at: &str| {
            wait_for("a call in hand", || {
                counted(method)?;
                let places = accelpool_tests::rules::hardware(&home);
                let complete = places.first().map(|place| place.complete);
                let expected = match (method, at) {
                    ("create_partition", "before") | ("destroy_partition", "after") => None,
                    (_, "half-way") => Some(false),
                    _ => Some(true),
                };
                (complete == expected).then_some(())
            });
        };

        let daemon = home.start();
        let (socket, asked) = (home.socket(), request.clone());
        let asking = thread::spawn(move || Client::connect(&socket).prepare(asked));
        in_hand("create_partition", at);
        daemon.kill();
        assert_eq!(page(&asking.join().unwrap().unwrap_err()), None);

        let daemon = home.start();
        let picture = Picture::take(&home, &daemon.client());
        assert_eq!((picture.faults(), picture.leases, picture.hardware), (vec![], vec![], vec![]));
        let lease = daemon.client().prepare(request.clone()).unwrap();

        home.script(&script("destroy_partition"));
        let socket = home.socket();
        let asking = thread::spawn(move || Client::connect(&socket).release("a"));
        in_hand("destroy_partition", at);
        daemon.kill();
        assert_eq!(page(&asking.join().unwrap().unwrap_err()), None);

        let daemon = home.start();
        let picture = Picture::take(&home, &daemon.client());
        assert_eq!((picture.faults(), picture.leases, picture.hardware), (vec![], vec![], vec![]));
        let again = daemon.client().prepare(request.clone()).unwrap();
        assert_eq!(again.allocations, lease.allocations);
    });
}
