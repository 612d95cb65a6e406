#!/usr/bin/env python3
"""Words are counted by two clusters at once: one counts in pieces of the text, the other adds up what comes out."""


def count(lines):
    counts = {}
    for word in " ".join(lines).lower().split():
        counts[word] = counts.get(word, 0) + 1
    return counts


def total(counts):
    result = {}
    for part in counts:
        for word, number in part.items():
            result[word] = result.get(word, 0) + number
    return result


if __name__ == "__main__":
    import dispy

    with open(__file__) as file:
        lines = file.readlines()
    mapper, reducer = dispy.JobCluster(count), dispy.JobCluster(total)
    pieces = [lines[start : start + 4] for start in range(0, len(lines), 4)]
    reducing, parts = [], []
    for job in dispy.as_completed([mapper.submit(piece) for piece in pieces]):
        parts.append(job.result)
        if len(parts) == 3:  # the second cluster begins before the first has finished
            reducing.append(reducer.submit(parts))
            parts = []
    counts = total([*parts, *(job() for job in reducing)])
    for word, number in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:5]:
        print(f"{number:3} {word}")
    mapper.close()
    reducer.close()
