//! Several futures at once, never more than a few, the first failure ends them all.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

/// Runs `futures` with at most `limit` under way and returns their results in order.
///
/// On the first error the others are dropped, which withdraws their requests.
pub(super) async fn try_join_bounded<F, T, E>(futures: impl IntoIterator<Item = F>, limit: usize) -> Result<Vec<T>, E>
where
    F: Future<Output = Result<T, E>>,
{
    let mut waiting = futures.into_iter().enumerate();
    let mut running: Vec<(usize, Pin<Box<F>>)> = Vec::new();
    let mut done: Vec<(usize, T)> = Vec::new();
    poll_fn(|context| {
        loop {
            while running.len() < limit.max(1) {
                let Some((index, future)) = waiting.next() else {
                    break;
                };
                running.push((index, Box::pin(future)));
            }
            if running.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let mut finished = false;
            let mut at = 0;
            while at < running.len() {
                match running[at].1.as_mut().poll(context) {
                    Poll::Ready(Ok(value)) => {
                        done.push((running.swap_remove(at).0, value));
                        finished = true;
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => at += 1,
                }
            }
            // A place that became free is filled at once: nothing else would wake this task.
            if !finished {
                return Poll::Pending;
            }
        }
    })
    .await?;
    done.sort_by_key(|(index, _)| *index);
    Ok(done.into_iter().map(|(_, value)| value).collect())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn keeps_order_and_the_bound() {
        let running = AtomicUsize::new(0);
        let most = AtomicUsize::new(0);
        let tasks = (0..20u64).map(|n| {
            let (running, most) = (&running, &most);
            async move {
                let now = running.fetch_add(1, Ordering::SeqCst) + 1;
                most.fetch_max(now, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(20 - n)).await;
                running.fetch_sub(1, Ordering::SeqCst);
                Ok::<_, ()>(n)
            }
        });
        let results = try_join_bounded(tasks, 3).await;
        assert_eq!(results, Ok((0..20).collect()));
        assert_eq!(most.load(Ordering::SeqCst), 3);
    }

    #[tokio::test]
    async fn the_first_error_ends_it() {
        let tasks = (0..3).map(|n| async move {
            if n == 1 {
                return Err("no");
            }
            tokio::time::sleep(Duration::from_secs(60)).await;
            Ok(n)
        });
        assert_eq!(try_join_bounded(tasks, 16).await, Err("no"));
    }

    #[tokio::test]
    async fn nothing_to_do() {
        let none: [std::future::Ready<Result<(), ()>>; 0] = [];
        assert_eq!(try_join_bounded(none, 16).await, Ok(vec![]));
    }
}
