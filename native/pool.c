#define _GNU_SOURCE /* RTLD_DEFAULT */
#include "pool.h"

#ifndef GRADCLIP_THREADS

void gradclip_parallel(void (*work)(void *), void *arg, int threads) {
    (void)threads;
    work(arg);
}

#else

#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>

enum { MOST_WORKERS = 255 };

/* A job offers `seats`, and a worker that wakes takes a free seat. The caller withdraws the free
 * seats when its own share is done, so that the caller never waits for a worker to wake up. */
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

/* The entry of an OpenMP runtime that the process already has, for example PyTorch's. The runtime's
 * threads spin for a while after each loop. Threads of our own would compete with them for the
 * cores, while the runtime's threads start our work at once. */
typedef void (*openmp)(void (*work)(void *), void *arg, unsigned threads, unsigned flags);
static openmp team;
static int forked;

/* Threads do not survive a fork, and one of them may have held a lock. In the child, OpenMP would
 * wait for threads that no longer exist. */
static void start_anew(void) {
    const struct pool fresh = NEW_POOL;
    memcpy(&pool, &fresh, sizeof pool);
    team = NULL;
    forked = 1;
}

__attribute__((constructor)) static void watch_forks(void) {
    pthread_atfork(NULL, NULL, start_anew);
}

static void find_team(void) {
    void *found = forked ? NULL : dlsym(RTLD_DEFAULT, "GOMP_parallel");
    memcpy(&team, &found, sizeof team);
}

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

/* The caller holds the lock. New workers block all signals, so that the host's threads get them. */
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
    pthread_once(&once, find_team);
    if (helpers > 0 && team) {
        team(work, arg, (unsigned)threads, 0);
        return;
    }
    if (helpers < 1 || pthread_mutex_trylock(&pool.turn) != 0) {
        work(arg); /* alone, because another call uses the pool */
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
