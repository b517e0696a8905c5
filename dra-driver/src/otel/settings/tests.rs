//! What the variables of the standard mean, and what is wrong with some.

use super::*;

fn read(variables: &[(&str, &str)]) -> Result<Option<Settings>, OtelError> {
    Settings::from_environment(&|name| {
        let found = variables.iter().find(|(variable, _)| *variable == name);
        found.map(|(_, value)| (*value).to_owned())
    })
}

const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317/");

#[track_caller]
fn check_wrong(variables: &[(&str, &str)], expected: &str) {
    let mut all = vec![ENDPOINT];
    all.splice(0..0, variables.iter().copied());
    let error = read(&all).unwrap_err().to_string();
    assert_eq!(error, format!("the environment variable {expected}"));
}

#[test]
fn without_a_collector_nothing_is_exported() {
    assert!(read(&[]).unwrap().is_none());
    assert!(read(&[("OTEL_TRACES_SAMPLER", "always_on")]).unwrap().is_none());
    assert!(read(&[ENDPOINT, ("OTEL_SDK_DISABLED", "True")]).unwrap().is_none());
    let none = [("OTEL_TRACES_EXPORTER", "none"), ("OTEL_METRICS_EXPORTER", "none")];
    assert!(read(&[ENDPOINT, none[0], none[1]]).unwrap().is_none());
    assert!(read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")]).unwrap().is_none());
}

#[test]
fn the_defaults_are_the_standards() {
    let settings = read(&[ENDPOINT]).unwrap().unwrap();
    let traces = settings.traces.unwrap();
    assert_eq!(traces.endpoint, "http://collector:4317/v1/traces");
    assert_eq!(traces.protocol, Protocol::HttpProtobuf);
    assert_eq!(traces.timeout, Duration::from_secs(10));
    assert_eq!(settings.metrics.unwrap().endpoint, "http://collector:4317/v1/metrics");
    assert_eq!(settings.sampler, Sampler::new(1.0, true));
    assert_eq!((settings.queue_max, settings.batch_max), (2048, 512));
    assert_eq!(settings.metric_interval, Duration::from_mins(1));
}

#[test]
fn a_signal_has_variables_of_its_own() {
    let settings = read(&[
        ENDPOINT,
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://traces:1/as/is"),
        ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "2500"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=a%2Cb, X-Scope = team"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test,a=b%20c"),
        ("OTEL_SERVICE_NAME", "gpus"),
    ]);
    let settings = settings.unwrap().unwrap();
    let (traces, metrics) = (settings.traces.unwrap(), settings.metrics.unwrap());
    assert_eq!(traces.endpoint, "http://traces:1/as/is");
    assert_eq!(metrics.endpoint, "http://collector:4317/");
    assert_eq!((traces.protocol, metrics.protocol), (Protocol::HttpProtobuf, Protocol::Grpc));
    assert_eq!(traces.timeout, Duration::from_millis(2500));
    assert_eq!(traces.headers[0].0, "api-key");
    assert_eq!(traces.headers[0].1, "a,b");
    assert_eq!(traces.headers[1].0, "x-scope");
    assert!(!format!("{:?}", traces.headers).contains("a,b"), "a token is in no log");
    assert_eq!(settings.resource[1], ("a".to_owned(), "b c".to_owned()));
    assert_eq!(settings.service_name.as_deref(), Some("gpus"));
}

#[test]
fn what_makes_no_sense_is_named() {
    check_wrong(
        &[("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317")],
        "OTEL_EXPORTER_OTLP_ENDPOINT is `collector:4317`: write a URL, such as \
         http://collector:4317",
    );
    check_wrong(
        &[("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")],
        "OTEL_EXPORTER_OTLP_PROTOCOL is `http/json`: use grpc or http/protobuf",
    );
    check_wrong(
        &[("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "10s")],
        "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT is `10s`: use a whole number from 1 to 60000",
    );
    check_wrong(
        &[("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")],
        "OTEL_EXPORTER_OTLP_COMPRESSION is `gzip`: nothing is compressed here: use none",
    );
    check_wrong(
        &[("OTEL_EXPORTER_OTLP_HEADERS", "token=%zz")],
        "OTEL_EXPORTER_OTLP_HEADERS is no list: write key=value,key=value, with %2C for a \
         comma within a value",
    );
    check_wrong(
        &[("OTEL_EXPORTER_OTLP_HEADERS", "a b=secret")],
        "OTEL_EXPORTER_OTLP_HEADERS has a header `a b` that HTTP does not allow",
    );
    check_wrong(
        &[("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector:4317")],
        "OTEL_EXPORTER_OTLP_ENDPOINT is https: name a file with the CAs of the collector in \
         OTEL_EXPORTER_OTLP_CERTIFICATE",
    );
    check_wrong(
        &[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector:4317"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/no/such/file"),
        ],
        "OTEL_EXPORTER_OTLP_CERTIFICATE is `/no/such/file`: failed to read `/no/such/file`: \
         No such file or directory (os error 2)",
    );
    check_wrong(
        &[("OTEL_TRACES_SAMPLER", "sometimes")],
        "OTEL_TRACES_SAMPLER is `sometimes`: use always_on, always_off or traceidratio, or \
         one of them with parentbased_ before it",
    );
    check_wrong(
        &[("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "2")],
        "OTEL_TRACES_SAMPLER_ARG is `2`: use a number from 0 to 1",
    );
    check_wrong(
        &[("OTEL_TRACES_EXPORTER", "zipkin")],
        "OTEL_TRACES_EXPORTER is `zipkin`: use otlp or none",
    );
    check_wrong(&[("OTEL_SDK_DISABLED", "yes")], "OTEL_SDK_DISABLED is `yes`: use true or false");
    check_wrong(
        &[("OTEL_METRIC_EXPORT_INTERVAL", "0")],
        "OTEL_METRIC_EXPORT_INTERVAL is `0`: use a whole number from 1000 to 86400000",
    );
}

#[test]
fn a_client_certificate_is_whole_or_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let pair = || rcgen::generate_simple_self_signed(vec!["collector".to_owned()]).unwrap();
    let (own, other) = (pair(), pair());
    let certificate = file("tls.crt", &own.cert.pem());
    let key = file("tls.key", &own.signing_key.serialize_pem());
    let wrong_key = file("other.key", &other.signing_key.serialize_pem());
    let ca = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector:4317"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", certificate.as_str()),
    ];
    let with = |more: &[(&str, &str)]| read(&[&ca[..], more].concat());
    let whole = [
        ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", certificate.as_str()),
        ("OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", key.as_str()),
        ("OTEL_EXPORTER_OTLP_CLIENT_KEY", wrong_key.as_str()),
    ];
    let problem = with(&whole).unwrap_err();
    assert_eq!(problem.variable, "OTEL_EXPORTER_OTLP_CLIENT_KEY", "of the figures: {problem}");
    let traces_only = [&whole[..], &[("OTEL_METRICS_EXPORTER", "none")]].concat();
    let tls = with(&traces_only).unwrap().unwrap().traces.unwrap().tls.unwrap();
    assert!(tls.client_auth_cert_resolver.has_certs());
    let none = with(&[]).unwrap().unwrap().traces.unwrap().tls.unwrap();
    assert!(!none.client_auth_cert_resolver.has_certs());
    check_wrong(
        &[&ca[..], &whole[..1]].concat(),
        "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE is nothing alone: name its other half in \
         OTEL_EXPORTER_OTLP_CLIENT_KEY",
    );
    check_wrong(
        &[&ca[..], &whole[1..2]].concat(),
        "OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY is nothing alone: name its other half in \
         OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
    );
}

#[test]
fn a_part_of_the_traces_is_the_same_part_everywhere() {
    let half = Sampler::new(0.5, true);
    assert!(half.keeps(0, None) && !half.keeps(u128::from(u64::MAX), None));
    assert!(half.keeps(u128::from(u64::MAX), Some(true)) && !half.keeps(0, Some(false)));
    let own = Sampler::new(0.5, false);
    assert!(!own.keeps(u128::from(u64::MAX), Some(true)) && own.keeps(0, Some(false)));
    let (all, none) = (Sampler::new(1.0, true), Sampler::new(0.0, true));
    assert!(all.keeps(u128::MAX, None) && !none.keeps(0, None));
    assert!(none.keeps(1, Some(true)));
}
