/* The threads of the process's OpenMP runtime, if it has one, else a small pool of our own: a
 * second runtime would fight the first. */
#ifndef GRADCLIP_POOL_H
#define GRADCLIP_POOL_H

/* Calls work(arg) on the calling thread and on up to `threads - 1` workers at once, and
 * returns when every call has returned. `work` must therefore share out its own tasks,
 * and must be right with any number of callers, one included. */
void gradclip_parallel(void (*work)(void *), void *arg, int threads);

#endif
