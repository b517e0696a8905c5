//! What pictures are made of.

use super::*;
use crate::{
    document::{Link, Taint},
    topology::arrange,
};

fn device(name: &str) -> Device {
    Device { name: name.to_owned(), present: true, ..Device::default() }
}

/// The picture of devices `0`, `1`, ... with links between the pairs given.
fn picture(devices: usize, pairs: &[(usize, usize)]) -> String {
    let devices = (0..devices).map(|at| device(&at.to_string())).collect();
    let link = |(a, b): &(usize, usize)| Link {
        a: a.to_string(),
        b: b.to_string(),
        kind: "nvlink".to_owned(),
        bandwidth_bytes_per_second: 450_000_000_000,
        ..Link::default()
    };
    let links = pairs.iter().map(link).collect();
    let topology = GetTopologyResponse { devices, links, ..GetTopologyResponse::default() };
    draw(&arrange(&topology), &topology)
}

#[test]
fn words_from_outside_stay_words() {
    let words = "<script>&\"'\u{1}\u{ffff}é";
    assert_eq!(crate::canvas::escape(words), "&lt;script&gt;&amp;&quot;&#39;\u{fffd}\u{fffd}é");
    let mut hostile = device("</text><script>");
    hostile.taints = vec![Taint { key: "<b>".to_owned(), ..Taint::default() }];
    hostile.usage.claims = vec!["\"><i>".to_owned()];
    let topology = GetTopologyResponse { devices: vec![hostile], ..GetTopologyResponse::default() };
    let text = draw(&arrange(&topology), &topology);
    assert!(!text.contains("<script") && !text.contains("<b>") && !text.contains("<i>"), "{text}");
}

#[test]
fn a_mesh_is_one_bar_and_a_pair_is_a_curve() {
    let mesh = picture(3, &[(0, 1), (1, 2), (0, 2)]);
    assert_eq!(mesh.matches("between any two of 3").count(), 1);
    assert_eq!(mesh.matches(" C ").count(), 0);
    let pair = picture(3, &[(0, 2)]);
    assert_eq!(pair.matches("between any two").count(), 0);
    assert_eq!(pair.matches(" C ").count(), 1);
    assert_eq!(pair.matches("nvlink 450").count(), 1);
}

#[test]
fn cliques_beside_each_other_share_a_lane() {
    let height = |text: &str| text.split("height=\"").nth(1).map(str::to_owned);
    let one = picture(6, &[(0, 1), (1, 2), (0, 2)]);
    let two = picture(6, &[(0, 1), (1, 2), (0, 2), (3, 4), (4, 5), (3, 5)]);
    assert_eq!(height(&one), height(&two));
}

#[test]
fn an_empty_node_has_a_picture() {
    let text = draw(&[], &GetTopologyResponse::default());
    assert!(text.contains("0 devices") && text.ends_with("</svg>\n"));
}
