//! Each test reads: parameters as written, resulting configuration or refusal.

use super::*;

#[track_caller]
fn check(fields: &str, expected: &str) {
    let head = r#""apiVersion": "accelpool.dev/v1alpha1", "kind": "ShareConfig""#;
    let comma = if fields.is_empty() { "" } else { ", " };
    check_whole(&format!("{{{head}{comma}{fields}}}"), expected);
}

#[track_caller]
fn check_whole(parameters: &str, expected: &str) {
    let actual = match ShareConfig::decode(parameters) {
        Ok(config) => shown(config),
        Err(error) => format!("refused: {error}"),
    };
    assert_eq!(actual, expected);
}

fn shown(config: ShareConfig) -> String {
    let ShareConfig {
        weight,
        class,
        memory_enforcement,
        compute_enforcement,
        access_enforcement,
        park,
    } = config;
    let fields = [
        weight.map(|weight| format!("weight {weight}")),
        class.map(|class| format!("class {class}")),
        memory_enforcement.map(|enforcement| format!("memory {enforcement}")),
        compute_enforcement.map(|enforcement| format!("compute {enforcement}")),
        access_enforcement.map(|enforcement| format!("access {enforcement}")),
        park.map(|park| format!("park {park}")),
    ];
    fields.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

#[test]
fn every_field_is_read() {
    check("", "");
    check(
        r#""weight": 200, "class": "realtime", "memoryEnforcement": "kernel",
           "computeEnforcement": "library", "accessEnforcement": "kernel", "park": true"#,
        "weight 200, class realtime, memory kernel, compute library, access kernel, park true",
    );
}

#[test]
fn wrong_values_name_path_value_and_range() {
    let weights = "use a whole number from 1 to 1000";
    for value in ["0", "1001", "-1", "1.5", "\"100\"", "null", "1e2", "99999999999999999999"] {
        check(
            &format!(r#""weight": {value}"#),
            &format!("refused: `weight` is {value}: {weights}"),
        );
    }
    check(r#""class": "urgent""#, r#"refused: `class` is "urgent": use realtime, normal or idle"#);
    check(
        r#""memoryEnforcement": "Kernel""#,
        r#"refused: `memoryEnforcement` is "Kernel": use none, library, kernel or hardware"#,
    );
    check(
        r#""accessEnforcement": "library""#,
        r#"refused: `accessEnforcement` is "library": use none or kernel"#,
    );
    check(r#""park": "yes""#, r#"refused: `park` is "yes": use true or false"#);
}

#[test]
fn unknown_and_repeated_fields_are_refused() {
    check(
        r#""wieght": 100"#,
        "refused: `wieght` is not known: use apiVersion, kind, weight, class, \
         memoryEnforcement, computeEnforcement, accessEnforcement and park",
    );
    check(r#""weight": 1, "weight": 1"#, "refused: `weight` is written twice");
    check(r#""weight": 1, "w\u0065ight": 1000"#, "refused: `weight` is written twice");
    check(r#""kind": "ShareConfig""#, "refused: `kind` is written twice");
}

#[test]
fn version_and_kind_are_needed() {
    check_whole("{}", "refused: `apiVersion` is missing: write `accelpool.dev/v1alpha1`");
    check_whole(
        r#"{"apiVersion": "accelpool.dev/v1alpha1"}"#,
        "refused: `kind` is missing: write `ShareConfig`",
    );
    check_whole(
        r#"{"apiVersion": "accelpool.dev/v1", "kind": "ShareConfig"}"#,
        r#"refused: `apiVersion` is "accelpool.dev/v1": use accelpool.dev/v1alpha1"#,
    );
    check_whole(
        r#"{"apiVersion": "accelpool.dev/v1alpha1", "kind": "GpuConfig"}"#,
        r#"refused: `kind` is "GpuConfig": use ShareConfig"#,
    );
}

#[test]
fn hostile_parameters_are_refused_in_short_words() {
    check_whole(
        &format!(r#"{{"a": "{}"}}"#, "x".repeat(10 * 1024)),
        "refused: parameters are 10249 bytes long, at most 10240 are allowed",
    );
    let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
    check(
        &format!(r#""weight": {deep}"#),
        &format!("refused: `weight` is {}...: use a whole number from 1 to 1000", "[".repeat(64)),
    );
    check(
        &format!(r#""{}": 1"#, "n".repeat(5000)),
        &format!("refused: `{}...` is not known: use {FIELDS}", "n".repeat(64)),
    );
    for text in ["", "null", "[]", "7", "\"ShareConfig\"", "{", "{} {}", "\u{0}", "{\"a\":}"] {
        let error = ShareConfig::decode(text).unwrap_err();
        assert!(matches!(error, ShareConfigError::NotAnObject { .. }), "{text}: {error}");
        assert!(error.to_string().len() < 200, "{error}");
    }
}

#[test]
fn what_a_tenant_wrote_is_shown_without_control_characters() {
    check(
        "\"class\": \"\\u001b[31m\", \"\": 1",
        r#"refused: `class` is "\u001b[31m": use realtime, normal or idle"#,
    );
    check(r#""\u001b[31m": 1"#, &format!("refused: `\\u{{1b}}[31m` is not known: use {FIELDS}"));
}

#[test]
fn later_fields_lie_over_earlier_ones() {
    let class = ShareConfig {
        weight: Some(Weight::DEFAULT),
        memory_enforcement: Some(Enforcement::Kernel),
        ..ShareConfig::default()
    };
    let claim = ShareConfig { class: Some(ShareClass::Idle), ..ShareConfig::default() };
    assert_eq!(shown(class.overlaid(claim)), "weight 100, class idle, memory kernel");
    assert_eq!(shown(claim.overlaid(class)), "weight 100, class idle, memory kernel");
    let heavy = ShareConfig { weight: Weight::try_from(900).ok(), ..ShareConfig::default() };
    assert_eq!(shown(class.overlaid(heavy)), "weight 900, memory kernel");
}
