//! Sites and positions as people write them: `resid_post.10`, `final_norm`, `last`, `0,3,-1`.

use std::{fmt, str::FromStr};

use crate::{
    Error, Result,
    v1::{
        AllPositions, GeneratedPositions, HookPoint, LastPosition, PositionList, PositionRange,
        PositionSelector, PromptPositions, Site, TextPositions, position_selector::Selection,
    },
};

const HOOK_POINT: &str = "HOOK_POINT_";

/// A layer has six digits at most.
const MOST_LAYERS: u32 = 999_999;

impl FromStr for Site {
    type Err = Error;

    /// The site of a text such as `resid_post.10`, `resid_post.-1` (the last layer) or
    /// `final_norm`; anything else is `SITE_INVALID`.
    fn from_str(text: &str) -> Result<Self> {
        let (name, layer) = match text.split_once('.') {
            Some((name, layer)) => (name, Some(layer)),
            None => (text, None),
        };
        let lower = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        let hook_point = lower
            .then(|| HookPoint::from_str_name(&format!("{HOOK_POINT}{}", name.to_uppercase())))
            .flatten()
            .filter(|&hook_point| hook_point != HookPoint::Unspecified);
        let layer_number = layer.map(layer_of);
        match (hook_point, layer_number) {
            (Some(hook_point), None) if !has_layer(hook_point) => {
                Ok(Self { hook_point: hook_point.into(), layer: None })
            }
            (Some(hook_point), Some(Some(layer))) if has_layer(hook_point) => {
                Ok(Self { hook_point: hook_point.into(), layer: Some(layer) })
            }
            _ => Err(Error::invalid(
                "SITE_INVALID",
                format!(
                    "{text:?} is not a site; write a hook point and a layer, as in resid_post.10, \
                     or one of embedding, final_norm and logits"
                ),
            )),
        }
    }
}

fn has_layer(hook_point: HookPoint) -> bool {
    !matches!(hook_point, HookPoint::Embedding | HookPoint::FinalNorm | HookPoint::Logits)
}

fn layer_of(text: &str) -> Option<i32> {
    number(text).filter(|layer| layer.unsigned_abs() <= MOST_LAYERS)
}

/// One number has one spelling: no plus sign, no leading zero and no -0.
fn number(text: &str) -> Option<i32> {
    text.parse().ok().filter(|number: &i32| number.to_string() == text)
}

impl fmt::Display for Site {
    /// As it is written, `resid_post.10`; with its number if the hook point is of a newer server.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match HookPoint::try_from(self.hook_point) {
            Ok(hook_point) => {
                let name = &hook_point.as_str_name()[HOOK_POINT.len()..];
                formatter.write_str(&name.to_lowercase())?;
            }
            Err(_) => write!(formatter, "{}", self.hook_point)?,
        }
        match self.layer {
            Some(layer) => write!(formatter, ".{layer}"),
            None => Ok(()),
        }
    }
}

impl FromStr for PositionSelector {
    type Err = Error;

    /// The positions of a text: `all`, `last`, `prompt` or `generated`; `3`, `-1` or `0,3,-1`;
    /// `2:8`, `:-1` or `2:`, a range as in Python; or `text:France`, every token of that text.
    /// Anything else is `POSITION_OUT_OF_RANGE`.
    fn from_str(text: &str) -> Result<Self> {
        let selection = match text {
            "all" => Some(Selection::All(AllPositions {})),
            "last" => Some(Selection::Last(LastPosition {})),
            "prompt" => Some(Selection::Prompt(PromptPositions {})),
            "generated" => Some(Selection::Generated(GeneratedPositions {})),
            _ => match (text.strip_prefix("text:"), text.split_once(':')) {
                (Some(""), _) => None,
                (Some(wanted), _) => Some(Selection::Text(TextPositions {
                    text: wanted.into(),
                    ..Default::default()
                })),
                (None, Some((start, end))) => range(start, end),
                (None, None) => list(text),
            },
        };
        if selection.is_none() {
            return Err(Error::invalid(
                "POSITION_OUT_OF_RANGE",
                format!(
                    "{text:?} are no positions; write all, last, prompt, generated, a list such as \
                     0,3,-1, a range such as 2:8, or text: and a text"
                ),
            ));
        }
        Ok(Self { selection })
    }
}

fn range(start: &str, end: &str) -> Option<Selection> {
    let bound = |text: &str| match text {
        "" => Some(None),
        _ => number(text).map(Some),
    };
    Some(Selection::Span(PositionRange { start: bound(start)?, end: bound(end)? }))
}

fn list(text: &str) -> Option<Selection> {
    let positions = text.split(',').map(number).collect::<Option<_>>()?;
    Some(Selection::List(PositionList { positions }))
}
