//! Each test reads: an entry, what is said to it.

use proptest::prelude::*;

use super::*;
use crate::chain::Chain;

/// The example of the README, which is the reference of the format.
fn example() -> &'static str {
    let readme = include_str!("../../README.md");
    readme.split("```toml").nth(1).unwrap().split("```").next().unwrap()
}

#[track_caller]
fn check(text: &str, expected: &str) {
    let profile = Profile::embedded("dgx-h100").unwrap();
    let said = match Script::parse(text, &profile) {
        Ok(_) => "sound".to_owned(),
        Err(error) => Chain(&error).to_string(),
    };
    assert!(said.contains(expected), "{said}");
}

#[test]
fn the_example_of_the_readme_is_read() {
    let profile = Profile::embedded("dgx-h100").unwrap();
    let script = Script::parse(example(), &profile).unwrap();
    assert_eq!(script.faults[0].fault.code, "xid-95");
    assert_eq!(script.partitions[0].place.start, 6);
    assert!(script.partitions[0].complete);
    assert_eq!(script.absent.len(), 1);
    let effects: Vec<_> = script.calls.iter().map(|call| (call.at, &call.effect)).collect();
    let error =
        Effect::Error { kind: CallErrorKind::Failed, message: "NVML_ERROR_UNKNOWN".to_owned() };
    let expected = [
        (Moment::Before, &Effect::Delay(Duration::from_millis(300))),
        (Moment::HalfWay, &error),
        (Moment::After, &Effect::Hang),
    ];
    assert_eq!(effects, expected);
    assert_eq!((script.calls[0].nth, script.calls[0].times), (2, 3));
    assert_eq!(script.processes[0].compute_permille, Some(100));
    let health = script.health.values().next().unwrap();
    assert_eq!(health.recovery_action, RecoveryAction::ResetDevice);
}

#[test]
fn nothing_is_a_script() {
    check("", "sound");
}

#[test]
fn entries_that_fit_no_device_are_refused() {
    let node = "use the name or the UUID of a device of profile dgx-h100";
    check("absent = [\"gpu-9\"]", &format!("`absent[0]` is `gpu-9`: {node}"));
    let partition = |profile: &str, start: i64| {
        format!(
            "[[partition]]\nid = \"p\"\ndevice = \"gpu-0000-1b-00-0\"\n\
             profile = \"{profile}\"\nstart = {start}\n"
        )
    };
    check(&partition("9g", 0), "`partition[0].profile` is `9g`: use a partition profile that");
    check(&partition("3g.40gb", 1), "`partition[0].start` is `1`: use one of [0, 4]");
    check(&partition("3g.40gb", 4), "sound");
}

#[test]
fn ids_stand_for_one_thing_each() {
    let call = "[[call]]\nid = \"c\"\nmethod = \"probe\"\nhang = true\n";
    check(&call.repeat(2), "`call[1].id` is `c`: use each id once in a script");
}

#[test]
fn a_call_has_one_method_and_one_effect() {
    let call = |rest: &str| format!("[[call]]\nid = \"c\"\n{rest}");
    let one = "give it one effect";
    check(&call("method = \"probe\"\n"), one);
    check(&call("method = \"probe\"\nhang = false\n"), one);
    check(&call("method = \"probe\"\nhang = true\ndelay_ms = 1\n"), one);
    check(&call("method = \"probe\"\ndelay_ms = 1\nmessage = \"x\"\n"), one);
    check(&call("method = \"prod\"\nhang = true\n"), "use one of discover, links, partitions");
    check(&call("method = \"probe\"\nerror = \"bad\"\n"), "use one of failed, unsupported");
    check(&call("method = \"probe\"\ndelay_ms = 0\n"), "`call[0].delay_ms` is `0`: use 1 to");
    check(&call("method = \"probe\"\nhang = true\nnth = 0\n"), "`call[0].nth` is `0`: use 1 to");
    check(
        &call("method = \"probe\"\nhang = true\nat = \"half-way\"\n"),
        "`call[0].at` is `half-way`: use before, after",
    );
    check(
        &call("method = \"discover\"\nhang = true\ndevice = \"gpu-0000-1b-00-0\"\n"),
        "leave it out: discover is not for one device",
    );
}

#[test]
fn processes_use_no_more_than_there_is() {
    let process = |pid: u32, memory: &str, permille: u32| {
        format!(
            "[[process]]\npid = {pid}\ndevice = \"gpu-0000-1b-00-0\"\nmemory = \"{memory}\"\n\
             compute_permille = {permille}\n"
        )
    };
    let first = process(1, "60Gi", 600);
    check(&(first.clone() + &process(2, "10Gi", 400)), "sound");
    check(&(first.clone() + &process(2, "20Gi", 400)), "`process[1].memory` is `20Gi`: with the");
    check(&(first.clone() + &process(2, "1Gi", 401)), "`process[1].compute_permille` is `401`");
    check(&(first + &process(1, "1Gi", 1)), "`process[1].pid` is `1`: use each process once");
    check(&process(0, "1Gi", 1), "`process[0].pid` is `0`: use 1 to 4194304");
}

#[test]
fn what_is_too_long_or_misspelt_is_refused() {
    check(&" ".repeat(SCRIPT_LEN_MAX + 1), "script has 1048577 bytes");
    check("abscent = []", "unknown field `abscent`");
    check(&format!("absent = [{}]", "\"x\", ".repeat(1025)), "`absent` is `1025 entries`");
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in any::<String>()) {
        let _ = Script::parse(&text, &Profile::embedded("mixed-edge").unwrap());
    }

    #[test]
    fn no_scratched_example_makes_the_reader_panic(
        scratches in prop::collection::vec(
            (any::<prop::sample::Index>(), 0..6_usize, "[0-9a-z\"=\\[\\]{}\n-]{0,8}|\\PC{0,4}"),
            0..4,
        ),
    ) {
        let mut text: Vec<char> = example().chars().collect();
        for (at, len, words) in scratches {
            let at = at.index(text.len());
            let end = (at + len).min(text.len());
            text.splice(at..end, words.chars());
        }
        let text: String = text.into_iter().collect();
        let _ = Script::parse(&text, &Profile::embedded("dgx-h100").unwrap());
    }
}
