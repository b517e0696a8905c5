//! Traits and settings of devices, to worker messages and back.

use accelpool_model::{DeviceTraits, Peer, PeerPath, Settings};
use accelpool_proto::worker as wire;

use super::convert::{BadAnswer, bad, clip, clip_to, limit};

/// A boot's identity and a few of the kernel's numbers take 100 bytes.
const INCARNATION_LEN_MAX: usize = 128;

pub(super) fn to_wire(traits: &DeviceTraits) -> wire::DeviceTraits {
    let peer = |peer: &Peer| wire::Peer {
        device: peer.device.to_string(),
        path: peer.path.map(|path| path.as_str().to_owned()).unwrap_or_default(),
        status: peer.status.clone(),
    };
    wire::DeviceTraits {
        compute_capability: traits.compute_capability.clone(),
        runtime_version: traits.runtime_version.clone(),
        peers: traits.peers.iter().map(peer).collect(),
        settings: Some(settings_to_wire(traits.settings)),
        incarnation: traits.incarnation.clone(),
    }
}

pub(super) fn settings_to_wire(settings: Settings) -> wire::Settings {
    wire::Settings {
        compute_mode: settings.compute_mode.map(|mode| mode.to_string()),
        persistence: settings.persistence,
        accounting: settings.accounting,
    }
}

pub(super) fn from_wire(wire: wire::DeviceTraits) -> Result<DeviceTraits, BadAnswer> {
    let what = "peer";
    limit("peers", wire.peers.len())?;
    let peer = |peer: wire::Peer| -> Result<Peer, BadAnswer> {
        let named = |path: &PeerPath| path.as_str() == peer.path;
        let path = PeerPath::ALL.into_iter().find(named);
        if path.is_none() && !peer.path.is_empty() {
            return Err(bad(what)(&clip(&peer.path)));
        }
        let device = peer.device.parse().map_err(|error| bad(what)(&error))?;
        Ok(Peer { device, path, status: clip(&peer.status) })
    };
    Ok(DeviceTraits {
        compute_capability: wire.compute_capability.as_deref().map(clip),
        runtime_version: wire.runtime_version.as_deref().map(clip),
        peers: wire.peers.into_iter().map(peer).collect::<Result<_, _>>()?,
        settings: settings_from_wire(&wire.settings.unwrap_or_default())?,
        incarnation: wire.incarnation.map(|text| clip_to(&text, INCARNATION_LEN_MAX)),
    })
}

pub(super) fn settings_from_wire(wire: &wire::Settings) -> Result<Settings, BadAnswer> {
    let mode = wire.compute_mode.as_deref().map(str::parse).transpose();
    Ok(Settings {
        compute_mode: mode.map_err(|error| bad("compute mode")(&error))?,
        persistence: wire.persistence,
        accounting: wire.accounting,
    })
}

#[cfg(test)]
mod tests {
    use accelpool_model::ComputeMode;

    use super::*;

    #[test]
    fn what_was_sent_is_what_arrives() {
        let traits = DeviceTraits {
            compute_capability: Some("9.0".to_owned()),
            runtime_version: None,
            peers: vec![Peer {
                device: "gpu-0000-1b-00-0".parse().unwrap(),
                path: Some(PeerPath::Switch),
                status: "ok".to_owned(),
            }],
            settings: Settings {
                compute_mode: Some(ComputeMode::ExclusiveProcess),
                persistence: Some(false),
                accounting: None,
            },
            // What is cut off of it would no longer tell one from the next.
            incarnation: Some("x".repeat(110)),
        };
        assert_eq!(from_wire(to_wire(&traits)).unwrap(), traits);
    }

    #[test]
    fn words_that_are_not_known_are_refused() {
        let peer = wire::Peer { path: "telepathy".into(), ..wire::Peer::default() };
        let traits = wire::DeviceTraits { peers: vec![peer], ..wire::DeviceTraits::default() };
        assert!(from_wire(traits).is_err());
        let settings =
            wire::Settings { compute_mode: Some("fast".into()), ..wire::Settings::default() };
        assert!(settings_from_wire(&settings).is_err());
    }
}
