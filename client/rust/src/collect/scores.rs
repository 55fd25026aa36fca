//! What monitors scored in a sequence.

use crate::{Array, Error, Result, v1::MonitorScore};

/// Checks that scores have of each token that counts the score as of it, if that was asked for, and
/// nothing of tokens otherwise.
pub(crate) fn check_scores(scores: &[MonitorScore], each_token: bool) -> Result<()> {
    for score in scores {
        let tokens = if each_token { score.tokens as usize } else { 0 };
        let positions = &score.positions;
        let shape = match &score.token_scores {
            Some(scores) => Array::try_from(scores)?.shape().to_vec(),
            None => vec![0],
        };
        if positions.len() != tokens || !positions.is_sorted_by(|one, next| one < next) {
            return Err(Error::bad_response(format!(
                "the server sent {} positions with the score of {}, which are not {tokens}, or do \
                 not ascend",
                positions.len(),
                score.monitor
            )));
        }
        if shape != [tokens] {
            return Err(Error::bad_response(format!(
                "the server sent scores of tokens of {} in the shape {shape:?}, not [{tokens}]",
                score.monitor
            )));
        }
    }
    Ok(())
}
