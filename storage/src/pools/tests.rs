use std::pin::{Pin, pin};
use std::sync::{Barrier, mpsc};
use std::task::{Context, Waker};
use std::time::Duration;

use super::*;

const KIND: Option<Kind> = Some(Kind(7));

fn name() -> String {
    std::thread::current().name().unwrap_or("").to_owned()
}

/// Who runs each part of a search with as many.
fn names(count: usize) -> Vec<String> {
    share_out(count, |_| Ok::<_, Error>(name())).unwrap()
}

/// Pools that know how long searches of [`KIND`] take, and saw as many alone as they want to see.
fn pools_that_expect(micros: u64) -> Pools {
    let pools = Pools::new(2, 1).unwrap();
    pools.paces.set(Kind(7), Duration::from_micros(micros));
    pools.alone.store(ALONE, Ordering::Relaxed);
    pools
}

/// Has a search begin whose end is not waited for.
fn begin<T>(search: Pin<&mut impl Future<Output = T>>) {
    assert!(search.poll(&mut Context::from_waker(Waker::noop())).is_pending());
}

#[tokio::test]
async fn work_runs_on_a_named_thread_and_its_panic_is_an_error() {
    let pools = Pools::new(1, 1).unwrap();
    assert_eq!(pools.search(None, name).await.unwrap(), "elanus-search-0");
    assert_eq!(pools.build(name), "elanus-build-0");
    assert_eq!(pools.write(name).await.unwrap(), "elanus-write-0");
    let error = pools.search(None, || panic!("boom {}", 7)).await.unwrap_err();
    assert!(error.to_string().contains("boom 7"), "{error}");
    assert_eq!(pools.search(None, || 1).await.unwrap(), 1);
}

#[tokio::test]
async fn a_search_shares_what_has_parts_and_keeps_what_has_none() {
    let pools = Pools::new(2, 1).unwrap();
    assert!(pools.search(None, || names(0)).await.unwrap().is_empty());
    assert!(pools.search(None, || names(1)).await.unwrap()[0].starts_with("elanus-search-"));
    let shared = pools.search(None, || names(64)).await.unwrap();
    assert!(shared.iter().all(|name| name.starts_with("elanus-share-")), "{shared:?}");
    // A part shares in turn, and an error ends it.
    let nested = || share_out(3, |i| share_out(4, move |j| Ok::<_, usize>(10 * i + j)));
    let expected: Vec<Vec<usize>> = (0..3).map(|i| (0..4).map(|j| 10 * i + j).collect()).collect();
    assert_eq!(pools.search(None, nested).await.unwrap(), Ok(expected.clone()));
    let odd = |i| if i % 2 == 1 { Err(i) } else { Ok(i) };
    assert!(pools.search(None, move || share_out(2, odd)).await.unwrap().is_err());
    // The same where nobody shares.
    let pools = pools_that_expect(50);
    assert_eq!(pools.search(KIND, nested).await.unwrap(), Ok(expected));
    assert_eq!(pools.search(KIND, move || share_out(2, odd)).await.unwrap(), Err(1));
}

#[tokio::test]
async fn a_short_search_stays_where_it_is_asked_for() {
    let here = name();
    assert_eq!(pools_that_expect(50).search(KIND, name).await.unwrap(), here);
    let parts = pools_that_expect(50).search(KIND, || names(3)).await.unwrap();
    assert_eq!(parts, vec![here; 3]);
}

/// Two parts that wait for each other, so that the second thread has to come.
fn both(part: impl Fn(usize) -> String + Send + Sync + 'static) -> Result<Vec<String>, Error> {
    let together = Barrier::new(2);
    share_out_owned(2, move |at| {
        together.wait();
        Ok(part(at))
    })
}

#[tokio::test]
async fn a_short_search_is_helped_with_what_it_owns() {
    let names = pools_that_expect(50).search(KIND, || both(|_| name())).await.unwrap().unwrap();
    assert!(names[0].starts_with("elanus-search-"), "{names:?}");
    assert_eq!(names[1], name());
    let torn = || both(|at| if at == 0 { panic!("boom {at}") } else { name() });
    let error = pools_that_expect(50).search(KIND, torn).await.unwrap_err();
    assert!(error.to_string().contains("boom 0"), "{error}");
    let odd = |i| if i % 2 == 1 { Err(i) } else { Ok(i) };
    let failed = pools_that_expect(50).search(KIND, move || share_out_owned(4, odd)).await;
    assert!(failed.unwrap().is_err());
}

#[tokio::test]
async fn a_short_search_does_itself_what_nobody_comes_for() {
    let pools = pools_that_expect(50);
    let (end, wait) = unbounded::<()>();
    for _ in 0..2 {
        let wait = wait.clone();
        let run = Box::new(move || {
            let _ = wait.recv();
        });
        pools.search.send(Job { run, shared: false }).unwrap();
    }
    let names = pools.search(KIND, || share_out_owned(3, |_| Ok::<_, Error>(name()))).await;
    assert_eq!(names.unwrap().unwrap(), vec![name(); 3]);
    drop(end);
}

#[tokio::test]
async fn a_panic_in_a_short_search_is_an_error_of_its_own() {
    let pools = pools_that_expect(50);
    let error = pools.search(KIND, || panic!("boom {}", 8)).await.unwrap_err();
    assert!(error.to_string().contains("boom 8"), "{error}");
    assert_eq!(pools.searches.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_search_that_may_take_long_goes_to_the_threads_for_searches() {
    let pools = pools_that_expect(10_000);
    assert!(pools.search(KIND, name).await.unwrap().starts_with("elanus-search-"));
    let pools = pools_that_expect(10_000);
    let shared = pools.search(KIND, || names(2)).await.unwrap();
    assert!(shared.iter().all(|name| name.starts_with("elanus-share-")), "{shared:?}");
    // So does the first of a kind, which is known from then on.
    let other = Some(Kind(8));
    assert!(pools.search(other, name).await.unwrap().starts_with("elanus-search-"));
    assert!(pools.paces.expected(Kind(8)).is_some());
}

#[tokio::test]
async fn a_short_search_among_others_goes_to_the_threads_for_searches() {
    let pools = pools_that_expect(50);
    let (end, wait) = mpsc::channel::<()>();
    let mut other = pin!(pools.search(None, move || wait.recv()));
    begin(other.as_mut());
    let among = pools.search(KIND, || names(2)).await.unwrap();
    // It shares nothing: the others want the processors.
    assert!(among[0].starts_with("elanus-search-") && among[0] == among[1], "{among:?}");
    end.send(()).unwrap();
    other.await.unwrap().unwrap();
    for _ in 0..ALONE {
        pools.paces.set(Kind(7), Duration::from_micros(50));
        assert!(pools.search(KIND, name).await.unwrap().starts_with("elanus-search-"));
    }
    pools.paces.set(Kind(7), Duration::from_micros(50));
    assert_eq!(pools.search(KIND, name).await.unwrap(), name());
}

#[tokio::test]
async fn a_search_that_nobody_waits_for_any_more_is_over_when_its_thread_is_done() {
    let pools = Pools::new(1, 1).unwrap();
    let (end, wait) = mpsc::channel::<()>();
    begin(pin!(pools.search(None, move || wait.recv())));
    assert_eq!(pools.searches.load(Ordering::Relaxed), 1);
    end.send(()).unwrap();
    // There is one thread: this one runs after it.
    pools.search(None, || ()).await.unwrap();
    assert_eq!(pools.searches.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn what_others_work_for_a_search_counts_as_its_time() {
    let pools = Pools::new(4, 1).unwrap();
    let part = |_| {
        std::thread::sleep(Duration::from_millis(10));
        Ok::<_, Error>(())
    };
    pools.search(KIND, move || share_out(4, part)).await.unwrap().unwrap();
    let expected = pools.paces.expected(Kind(7)).unwrap();
    assert!(expected >= Duration::from_millis(40), "{expected:?}");
}
