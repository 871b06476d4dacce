#include "pool.h"

#ifndef GRADCLIP_THREADS

void gradclip_parallel(void (*work)(void *), void *arg, int threads) {
    (void)threads;
    work(arg);
}

#else

#include <pthread.h>
#include <signal.h>
#include <string.h>

enum { MOST_WORKERS = 255 };

/* A job offers `seats`; a worker that wakes while one is free takes it. The caller withdraws
 * the free ones when its own share is done, so it never waits for a worker to wake up. */
struct pool {
    pthread_mutex_t turn; /* held by the one call that has the workers */
    pthread_mutex_t lock; /* guards everything below */
    pthread_cond_t wake, done;
    void (*work)(void *);
    void *arg;
    int workers, seats, running;
};

#define NEW_POOL                                                                              \
    {.turn = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER,                    \
     .wake = PTHREAD_COND_INITIALIZER, .done = PTHREAD_COND_INITIALIZER}

static struct pool pool = NEW_POOL;
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* Threads do not survive a fork, and the locks may have been held by one of them. */
static void start_anew(void) {
    const struct pool fresh = NEW_POOL;
    memcpy(&pool, &fresh, sizeof pool);
}

static void watch_forks(void) { pthread_atfork(NULL, NULL, start_anew); }

static void *worker(void *unused) {
    (void)unused;
    pthread_mutex_lock(&pool.lock);
    for (;;) {
        while (pool.seats == 0) pthread_cond_wait(&pool.wake, &pool.lock);
        void (*work)(void *) = pool.work;
        void *arg = pool.arg;
        pool.seats--;
        pool.running++;
        pthread_mutex_unlock(&pool.lock);
        work(arg);
        pthread_mutex_lock(&pool.lock);
        if (--pool.running == 0) pthread_cond_signal(&pool.done);
    }
    return NULL;
}

/* Called with the lock held. Signals stay with the host program's threads. */
static void hire(int wanted) {
    sigset_t all, before;
    if (pool.workers >= wanted) return;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (pool.workers < wanted) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, worker, NULL) != 0) break; /* fewer will do */
        pthread_detach(thread);
        pool.workers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

void gradclip_parallel(void (*work)(void *), void *arg, int threads) {
    int helpers = threads - 1 < MOST_WORKERS ? threads - 1 : MOST_WORKERS;
    pthread_once(&once, watch_forks);
    if (helpers < 1 || pthread_mutex_trylock(&pool.turn) != 0) {
        work(arg); /* alone: the pool is busy with another call */
        return;
    }
    pthread_mutex_lock(&pool.lock);
    hire(helpers);
    pool.work = work;
    pool.arg = arg;
    pool.seats = helpers < pool.workers ? helpers : pool.workers;
    for (int i = pool.seats; i > 0; i--) pthread_cond_signal(&pool.wake);
    pthread_mutex_unlock(&pool.lock);

    work(arg);

    pthread_mutex_lock(&pool.lock);
    pool.seats = 0;
    while (pool.running > 0) pthread_cond_wait(&pool.done, &pool.lock);
    pthread_mutex_unlock(&pool.lock);
    pthread_mutex_unlock(&pool.turn);
}

#endif
